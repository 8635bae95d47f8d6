"""The objects of the demo scenes: the shape of each, and the light on it.

An object is modelled as a relief: its parts are painted into a colour map and a height map, and the light falls on
the slopes of the height map.
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

COLORS = {
    "red": (205, 28, 32),
    "orange": (244, 128, 18),
    "yellow": (250, 214, 36),
    "green": (36, 150, 62),
    "blue": (32, 84, 205),
    "purple": (128, 48, 165),
    "white": (240, 240, 238),
    "black": (34, 34, 38),
}
WOOD, BRASS, GLASS, IRON, CREAM = (140, 92, 52), (176, 140, 74), (128, 160, 180), (52, 52, 58), (236, 226, 204)


def noise(rng, height: int, width: int, grain_y: float, grain_x: float, octaves: int = 1) -> np.ndarray:
    """Smooth random values of mean 0 and about -1..1, (height, width); the grain is the size of a blot in pixels."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        rows, columns = int(height / grain_y * 2**octave) + 2, int(width / grain_x * 2**octave) + 2
        blots = Image.fromarray(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
        total += np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    return total


def tone(color, factor: float):
    """A darker (factor < 1) or lighter version of `color`."""
    if factor <= 1:
        return tuple(int(v * factor) for v in color)
    return tuple(int(v + (255 - v) * (factor - 1)) for v in color)


class Relief:
    """One object under construction: colour, opacity and height of every pixel. Parts are given in the unit square,
    y down, and later parts cover earlier ones. `form` is flat, round (a ball) or tube (a standing cylinder)."""

    def __init__(self, width: int, height: int, mirrored: bool):
        self.size = (max(width, 8), max(height, 8))
        self.mirrored = mirrored
        self.color = Image.new("RGB", self.size)
        self.mask = Image.new("L", self.size)
        self.height = np.zeros(self.size[::-1], np.float32)

    def points(self, points):
        """Pixels of points of the unit square."""
        width, height = self.size[0] - 1, self.size[1] - 1
        return [((1 - x if self.mirrored else x) * width, y * height) for x, y in points]

    def part(self, draw, color, form: str, thickness: float = 0.05) -> None:
        """Add the shape that `draw(ImageDraw)` fills with 255."""
        stencil = Image.new("L", self.size)
        draw(ImageDraw.Draw(stencil))
        self.color.paste(color, mask=stencil)
        self.mask = ImageChops.lighter(self.mask, stencil)
        box = stencil.getbbox()
        if box is None:
            return
        left, top, right, bottom = box
        inside = np.asarray(stencil)[top:bottom, left:right] > 0
        x = np.linspace(-1, 1, right - left, dtype=np.float32)[None]
        y = np.linspace(-1, 1, bottom - top, dtype=np.float32)[:, None]
        radius = (right - left) / 2
        if form == "round":
            relief = np.sqrt(np.clip(1 - x * x - y * y, 0, 1)) * min(radius, (bottom - top) / 2)
        elif form == "tube":
            relief = np.sqrt(np.clip(1 - x * x, 0, 1)) * radius * 0.8 + 0 * y
        else:
            relief = np.full(inside.shape, thickness * max(self.size), np.float32)
        patch = self.height[top:bottom, left:right]
        patch[inside] = relief[inside]

    def polygon(self, points, color, form="flat", **kwargs):
        corners = self.points(points)
        self.part(lambda draw: draw.polygon(corners, fill=255), color, form, **kwargs)

    def box(self, left, top, right, bottom, color, form="flat", **kwargs):
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color, form, **kwargs)

    def oval(self, left, top, right, bottom, color, form="round", **kwargs):
        (x0, y0), (x1, y1) = self.points([(left, top), (right, bottom)])
        self.part(lambda draw: draw.ellipse((min(x0, x1), y0, max(x0, x1), y1), fill=255), color, form, **kwargs)

    def line(self, points, color, width: float, form="flat", **kwargs):
        corners, pixels = self.points(points), max(round(width * self.size[1]), 2)
        self.part(lambda draw: draw.line(corners, fill=255, width=pixels, joint="curve"), color, form, **kwargs)

    def lit(self, sun, rng, gloss: float = 60) -> Image.Image:
        """The object under light from direction `sun` (x, y; the viewer is at z = 1): RGBA."""
        relief = np.pad(self.height, 1)
        for _ in range(3):  # rounds the edges of flat parts
            for axis in (0, 1):
                relief = (np.roll(relief, 1, axis) + 2 * relief + np.roll(relief, -1, axis)) / 4
        slope_y, slope_x = np.gradient(relief[1:-1, 1:-1])
        slope_y, slope_x = np.clip(slope_y, -2.5, 2.5), np.clip(slope_x, -2.5, 2.5)
        length = np.sqrt(1 + slope_x**2 + slope_y**2)
        light = np.float32((sun[0], sun[1], 0.75))
        light /= np.linalg.norm(light)
        facing = np.clip((-slope_x * light[0] - slope_y * light[1] + light[2]) / length, 0, 1)
        half = light + np.float32((0, 0, 1))
        half /= np.linalg.norm(half)
        mirror = np.clip((-slope_x * half[0] - slope_y * half[1] + half[2]) / length, 0, 1)
        wear = 1 + 0.035 * noise(rng, *self.size[::-1], 8, 8, 2)
        fall = np.linspace(1.04, 0.92, self.size[1], dtype=np.float32)[:, None]
        shade = (0.5 + 0.62 * facing) * wear * fall
        color = np.asarray(self.color, np.float32) * shade[..., None] + gloss * (mirror**28)[..., None]
        figure = Image.fromarray(np.uint8(np.clip(color, 0, 255)))
        figure.putalpha(self.mask)
        return figure


def ball(relief, color):
    relief.oval(0, 0, 1, 1, color)


def crate(relief, color):
    relief.polygon([(0, 0.22), (0.72, 0.22), (0.72, 1), (0, 1)], color)
    relief.polygon([(0.72, 0.22), (1, 0), (1, 0.8), (0.72, 1)], tone(color, 0.66))
    relief.polygon([(0, 0.22), (0.28, 0), (1, 0), (0.72, 0.22)], tone(color, 1.22))
    relief.box(0.31, 0.22, 0.41, 1, tone(color, 0.82))
    relief.polygon([(0.31, 0.22), (0.59, 0), (0.69, 0), (0.41, 0.22)], tone(color, 1.05))


def car(relief, color):
    relief.polygon([(0.2, 0.42), (0.31, 0.04), (0.66, 0.04), (0.8, 0.42)], color)
    relief.polygon([(0.26, 0.4), (0.335, 0.12), (0.47, 0.12), (0.47, 0.4)], GLASS, thickness=0.04)
    relief.polygon([(0.51, 0.4), (0.51, 0.12), (0.63, 0.12), (0.72, 0.4)], GLASS, thickness=0.04)
    body = [(0.01, 0.48), (0.1, 0.4), (0.78, 0.4), (0.95, 0.5), (0.99, 0.6), (0.99, 0.78), (0.96, 0.82), (0.03, 0.82)]
    relief.polygon([*body, (0.01, 0.76)], color, thickness=0.06)
    relief.line([(0.49, 0.42), (0.49, 0.78)], tone(color, 0.7), 0.02, thickness=0.055)
    relief.line([(0.02, 0.8), (0.98, 0.8)], IRON, 0.06)
    relief.oval(0.92, 0.52, 0.985, 0.64, (250, 240, 190))
    relief.box(0.01, 0.52, 0.05, 0.62, (170, 30, 30))
    for x in (0.22, 0.77):
        relief.oval(x - 0.105, 0.6, x + 0.105, 1, (30, 30, 32), "flat", thickness=0.07)
        relief.oval(x - 0.055, 0.695, x + 0.055, 0.905, (170, 172, 176))


def house(relief, color):
    relief.box(0.72, 0.02, 0.83, 0.35, (128, 82, 70))
    relief.box(0.05, 0.34, 0.95, 1, color, thickness=0.03)
    relief.polygon([(0, 0.4), (0.2, 0.06), (0.8, 0.06), (1, 0.4)], tone(color, 0.55), thickness=0.06)
    relief.box(0.43, 0.63, 0.58, 1, WOOD, thickness=0.02)
    for x in (0.15, 0.69):
        relief.box(x, 0.53, x + 0.17, 0.76, CREAM)
        relief.box(x + 0.02, 0.555, x + 0.15, 0.735, GLASS, thickness=0.03)
        relief.line([(x + 0.085, 0.55), (x + 0.085, 0.74)], CREAM, 0.02)


def boat(relief, color):
    relief.box(0.46, 0, 0.49, 0.75, WOOD, "tube")
    relief.polygon([(0.51, 0.03), (0.93, 0.62), (0.51, 0.62)], color, thickness=0.03)
    relief.polygon([(0.44, 0.12), (0.44, 0.62), (0.12, 0.62)], CREAM, thickness=0.03)
    relief.polygon([(0, 0.69), (1, 0.66), (0.84, 0.97), (0.74, 1), (0.24, 1), (0.14, 0.96)], color, thickness=0.08)
    relief.line([(0.01, 0.7), (0.99, 0.67)], CREAM, 0.035, thickness=0.08)


def cup(relief, color):
    relief.oval(0.6, 0.26, 1, 0.76, tone(color, 0.9))
    hole = relief.points([(0.72, 0.38), (0.88, 0.64)])
    x0, x1 = sorted((hole[0][0], hole[1][0]))
    ImageDraw.Draw(relief.mask).ellipse((x0, hole[0][1], x1, hole[1][1]), fill=0)
    outline = [(0, 0.1), (0.76, 0.1), (0.7, 0.86), (0.62, 0.96), (0.5, 1), (0.26, 1), (0.14, 0.96), (0.06, 0.86)]
    relief.polygon(outline, color, "tube")
    relief.oval(0, 0, 0.76, 0.2, tone(color, 1.25), "flat")
    relief.oval(0.05, 0.03, 0.71, 0.18, (84, 52, 32), "flat", thickness=0.03)


def umbrella(relief, color):
    relief.line([(0.5, 0.06), (0.5, 0.9), (0.53, 0.96), (0.59, 0.97), (0.63, 0.9)], WOOD, 0.035)
    angles = np.linspace(np.pi, 2 * np.pi, 25)
    dome = [(0.5 + 0.5 * np.cos(a), 0.54 + 0.48 * np.sin(a)) for a in angles]
    hem = [(1 - (i + u) / 5, 0.54 - 0.06 * np.sin(np.pi * u)) for i in range(5) for u in (0.01, 0.25, 0.5, 0.75, 0.99)]
    relief.polygon(dome + hem, color, "round")
    for left in (0.2, 0.6):  # every other panel is darker
        panel = [(0.5, 0.06), (left + 0.01, 0.52), (left + 0.1, 0.485), (left + 0.19, 0.52)]
        ImageDraw.Draw(relief.color).polygon(relief.points(panel), fill=tone(color, 0.8))
    relief.box(0.485, 0, 0.515, 0.07, IRON)


def chair(relief, color):
    for x, top, bottom in ((0.26, 0.5, 0.86), (0.9, 0.5, 0.86)):
        relief.box(x, top, x + 0.09, bottom, tone(color, 0.62), "tube")
    for x in (0.2, 0.83):
        relief.box(x, 0, x + 0.1, 0.56, tone(color, 0.9), "tube")
    for y in (0.02, 0.18, 0.34):
        relief.box(0.2, y, 0.93, y + 0.13, color, thickness=0.04)
    relief.polygon([(0.2, 0.5), (1, 0.5), (0.86, 0.66), (0, 0.66)], tone(color, 1.12), thickness=0.05)
    relief.polygon([(0, 0.66), (0.86, 0.66), (0.86, 0.73), (0, 0.73)], color)
    for x in (0.0, 0.76):
        relief.box(x, 0.72, x + 0.1, 1, tone(color, 0.85), "tube")


def flower(relief, color):
    relief.line([(0.5, 0.4), (0.52, 0.7), (0.48, 1)], (62, 124, 48), 0.045)
    relief.polygon([(0.5, 0.88), (0.7, 0.66), (0.95, 0.64), (0.78, 0.82)], (70, 138, 54))
    relief.polygon([(0.5, 0.94), (0.3, 0.74), (0.06, 0.72), (0.22, 0.9)], (58, 120, 46))
    for ring, factor in ((0.0, 0.86), (np.pi / 6, 1.0)):
        for angle in np.arange(6) * np.pi / 3 + ring:
            x, y = 0.5 + 0.31 * np.cos(angle), 0.28 + 0.176 * np.sin(angle)
            relief.oval(x - 0.19, y - 0.11, x + 0.19, y + 0.11, tone(color, factor))
    relief.oval(0.35, 0.195, 0.65, 0.365, (150, 96, 30))


def balloon(relief, color):
    relief.line([(0.5, 0.72), (0.56, 0.8), (0.46, 0.9), (0.5, 1)], (205, 205, 205), 0.012)
    relief.polygon([(0.5, 0.66), (0.42, 0.75), (0.58, 0.75)], tone(color, 0.8))
    relief.oval(0, 0, 1, 0.7, color)


def lamp(relief, color):
    relief.oval(0.2, 0.9, 0.8, 1, BRASS, "flat")
    relief.box(0.46, 0.5, 0.54, 0.95, BRASS, "tube")
    relief.oval(0.36, 0.62, 0.64, 0.84, BRASS)
    relief.polygon([(0.26, 0), (0.74, 0), (1, 0.54), (0, 0.54)], color, "tube")
    relief.line([(0.01, 0.53), (0.99, 0.53)], tone(color, 0.75), 0.02)


def duck(relief, color):
    relief.polygon([(0.0, 0.42), (0.24, 0.58), (0.1, 0.78)], tone(color, 0.92))
    relief.oval(0.03, 0.44, 0.84, 1, color)
    relief.oval(0.5, 0.02, 0.88, 0.52, color)
    relief.oval(0.2, 0.52, 0.6, 0.84, tone(color, 0.84))
    relief.polygon([(0.85, 0.22), (1, 0.29), (0.99, 0.35), (0.84, 0.36)], (238, 136, 34))
    relief.oval(0.7, 0.15, 0.77, 0.24, (250, 250, 250), "flat")
    relief.oval(0.72, 0.17, 0.765, 0.23, (16, 16, 18), "flat")


# object: (width / height, how it is built)
MODELS = {
    "ball": (1.0, ball),
    "box": (1.15, crate),
    "car": (1.95, car),
    "house": (1.2, house),
    "boat": (1.1, boat),
    "cup": (1.1, cup),
    "umbrella": (1.05, umbrella),
    "chair": (0.75, chair),
    "flower": (0.58, flower),
    "balloon": (0.68, balloon),
    "lamp": (0.66, lamp),
    "duck": (1.15, duck),
}
