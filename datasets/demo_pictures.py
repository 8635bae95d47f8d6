"""Draw the scenes of demo_scenes.py: shaded objects with shadows on textured grounds, with the flaws of a snapshot.

`render(scene, rng)` is the one entry; the objects themselves are in demo_objects.py.
"""

import numpy as np
from demo_objects import COLORS, MODELS, Relief, noise
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 2  # objects are drawn at twice their size and reduced, which smooths their edges
MARGIN = 1.09  # the canvas is larger than the picture, so that tilting the camera shows no corners


def render(scene: dict, rng: np.random.Generator) -> Image.Image:
    """The picture of `scene` (see demo_scenes.imagine) as RGB of scene["width"] x scene["height"] pixels."""
    width, height = round(scene["width"] * MARGIN), round(scene["height"] * MARGIN)
    horizon = round(height * rng.uniform(0.38, 0.5))
    sun = (rng.choice((-1, 1)) * rng.uniform(0.35, 0.75), -rng.uniform(0.45, 0.75))  # where the light is: x, y
    picture = Image.fromarray(np.uint8(np.clip(background(scene, width, height, horizon, rng), 0, 255)))
    for thing in sorted(arrange(scene, width, height, rng), key=lambda thing: thing["base"]):
        place_object(picture, scene, thing, sun, rng)
    return develop(picture, scene, sun[0], rng)


def develop(picture: Image.Image, scene: dict, light: float, rng: np.random.Generator) -> Image.Image:
    """The picture with the flaws of a camera: tilt, uneven light, a tint, noise; cropped to the size of the scene."""
    canvas_width, canvas_height = picture.size
    picture = picture.rotate(rng.uniform(-2.2, 2.2), Image.Resampling.BILINEAR)
    left, top = (canvas_width - scene["width"]) // 2, (canvas_height - scene["height"]) // 2
    picture = picture.crop((left, top, left + scene["width"], top + scene["height"]))
    pixels = np.asarray(picture, np.float32)
    y = np.linspace(-1, 1, scene["height"], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, scene["width"], dtype=np.float32)[None]
    exposure = rng.uniform(0.92, 1.08) * (1 + 0.1 * light * x) * (1 - rng.uniform(0.04, 0.14) * (x * x + y * y))
    tint = {"sunset": (1.07, 0.98, 0.88), "cloudy": (0.95, 0.98, 1.0)}.get(scene["weather"], (1.02, 1.0, 0.97))
    pixels = pixels * np.float32(exposure)[..., None] * np.float32(tint)
    pixels += rng.uniform(1.5, 4) * rng.standard_normal((*pixels.shape[:2], 1), np.float32)
    return Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))


# Where things stand


def arrange(scene: dict, width: int, height: int, rng: np.random.Generator) -> list[dict]:
    """Place the objects of the scene: dicts of object, color, x (centre), base (bottom) and height, in pixels."""
    side, count, second = min(width, height), scene["count"], scene["second"]
    low, high = {"big": (0.62, 0.7), "small": (0.4, 0.46), None: (0.5, 0.58) if count == 1 else (0.4, 0.46)}[
        scene["size"]
    ]
    size = side * rng.uniform(low, high) * (1, 1, 0.88, 0.78)[count - 1]
    tall, wide = proportions(scene["object"], size)
    relation = second["relation"] if second else None
    base = height * rng.uniform(0.8, 0.9)
    tall2, wide2 = proportions(second["object"], max(0.52 * size, 0.24 * side)) if second else (0, 0)
    beside = relation in ("left", "right")
    gap = 0.04 * width
    group = count * wide + (count - 1) * gap * 0.6
    total = group + (gap + wide2 if beside else 0)
    shrink = min(1.0, 0.86 * width / total, 0.72 * height / tall)
    tall, wide, tall2, wide2, group, gap, total = (
        value * shrink for value in (tall, wide, tall2, wide2, group, gap, total)
    )
    start = rng.uniform(0.06 * width, max(0.06 * width, 0.94 * width - total))
    first = start + (wide2 + gap if relation == "right" else 0)
    center, things = first + group / 2, []
    if second:
        aside = rng.choice((-1, 1)) if width * 0.3 < center < width * 0.7 else np.sign(width / 2 - center)
        x2, base2 = {
            "left": (first + group + gap + wide2 / 2, base + height * rng.uniform(-0.05, 0.03)),
            "right": (start + wide2 / 2, base + height * rng.uniform(-0.05, 0.03)),
            "front": (center + aside * (0.36 * group + 0.3 * wide2), base - height * 0.13),
            "behind": (center + aside * 0.3 * group, base + height * 0.07),
        }[relation]
        if relation == "front":  # seen over the shoulder of the main object, so it must be tall enough to be seen
            tall2, wide2 = proportions(second["object"], 0.6 * size * shrink)
        x2 = float(np.clip(x2, 0.05 * width + wide2 / 2, 0.95 * width - wide2 / 2))
        base -= height * 0.05 * (relation == "behind")
        things.append({**second, "x": x2, "base": base2, "height": tall2})
    for index in range(count):
        things.append(
            {
                "object": scene["object"],
                "color": scene["color"],
                "x": first + wide / 2 + index * (wide + gap * 0.6),
                "base": base + height * rng.uniform(-0.03, 0.03) * (count > 1),
                "height": tall * rng.uniform(0.94, 1.0),
            }
        )
    return things


def proportions(name: str, size: float) -> tuple[float, float]:
    """Height and width in pixels of an object that takes up the area of a square of `size` pixels."""
    aspect = MODELS[name][0]
    return size / aspect**0.5, size * aspect**0.5


def place_object(picture: Image.Image, scene: dict, thing: dict, sun, rng: np.random.Generator) -> None:
    """Draw one object into `picture`, with its cast shadow, or its reflection where it floats."""
    aspect, model = MODELS[thing["object"]]
    tall = thing["height"]
    pixels = (round(SUPERSAMPLING * tall * aspect * rng.uniform(0.94, 1.06)), round(SUPERSAMPLING * tall))
    mirrored = rng.random() < 0.5
    relief = Relief(*pixels, mirrored)
    jitter = rng.uniform(0.94, 1.06) + rng.uniform(-0.02, 0.02, 3)
    model(relief, tuple(int(v) for v in np.clip(np.array(COLORS[thing["color"]]) * jitter, 0, 255)))
    figure = relief.lit(sun, rng)
    figure = figure.rotate(rng.uniform(-3, 3), Image.Resampling.BILINEAR, expand=True)
    figure = figure.reduce(SUPERSAMPLING)
    left, base = round(thing["x"] - figure.width / 2), round(thing["base"])
    if scene["place"] == "lake" and thing["object"] != "balloon":
        reflect(picture, figure, left, base, rng)
        sunk = round(figure.height * 0.04)  # what lies under the water line
        figure = figure.crop((0, 0, figure.width, figure.height - sunk))
        picture.paste(figure, (left, base - figure.height), figure)
        return
    if thing["object"] == "balloon":
        base -= round(tall * 0.1)  # it hovers
    strength = {"cloudy": 0.35, "sunset": 0.5}.get(scene["weather"], 0.6)
    cast_shadow(picture, figure, left, round(thing["base"]), -sun[0], strength)
    picture.paste(figure, (left, base - figure.height), figure)


def cast_shadow(picture, figure, left: int, base: int, lean: float, strength: float) -> None:
    """Darken the ground with the silhouette of `figure`, laid down away from the light and blurred."""
    length, reach = max(round(figure.height * 0.32), 2), round(figure.height * 0.6)
    steep = figure.height / length
    # the silhouette's bottom row stays where it is, its top row moves by lean * reach
    shear = lean * reach / length
    laid = figure.getchannel("A").transform(
        (figure.width + 2 * reach, length + 8),
        Image.Transform.AFFINE,
        (1, shear, -reach - shear * length, 0, steep, 0),
        Image.Resampling.BILINEAR,
    )
    shadow = Image.new("L", picture.size)
    shadow.paste(laid, (left - reach, base - length))
    foot = max(figure.height // 30, 2)
    ImageDraw.Draw(shadow).ellipse(
        (left + figure.width * 0.1, base - foot, left + figure.width * 0.9, base + foot), fill=200
    )
    shadow = shadow.filter(ImageFilter.GaussianBlur(max(figure.height * 0.025, 1.2)))
    picture.paste((24, 24, 34), mask=shadow.point(lambda v: int(v * strength)))


def reflect(picture, figure, left: int, base: int, rng) -> None:
    """Mirror `figure` in the water below `base`, fading with depth and torn by ripples."""
    upside = np.asarray(figure.transpose(Image.Transpose.FLIP_TOP_BOTTOM)).copy()
    rows = np.arange(len(upside))
    waves = np.round(2.2 * np.sin(rows * 0.9 + rng.uniform(0, 6)) * (0.3 + rows / len(rows))).astype(int)
    columns = (np.arange(upside.shape[1]) + waves[:, None]).clip(0, upside.shape[1] - 1)
    upside = upside[rows[:, None], columns]
    upside[..., 3] = upside[..., 3] * np.linspace(0.6, 0.0, len(rows))[:, None]
    image = Image.fromarray(upside).filter(ImageFilter.GaussianBlur(1))
    picture.paste(image, (left, base - 1), image)


# Grounds and backdrops


def background(scene: dict, width: int, height: int, horizon: int, rng) -> np.ndarray:
    """Backdrop above the horizon, out of focus, and ground below it: float32 (height, width, 3), 0..255."""
    if scene["backdrop"] == "wall":
        upper = brick_wall(width, horizon, rng)
    elif scene["backdrop"] == "room":
        paint = rng.uniform(150, 215) + rng.uniform(-22, 22, 3)
        upper = paint + 5 * noise(rng, horizon, width, 30, 30, 3)[..., None]
        upper[-max(height // 40, 3) :] *= 0.72  # a skirting board
    else:
        upper = sky(scene["weather"], width, horizon, rng)
        upper = skyline(upper, scene["place"], rng)
    upper = Image.fromarray(np.uint8(np.clip(upper, 0, 255))).filter(ImageFilter.GaussianBlur(1.4))
    ground = GROUNDS[scene["place"]](width, height - horizon, rng)
    if scene["place"] == "lake":  # water shows the colour of the sky
        ground = 0.62 * ground + 0.38 * np.asarray(upper, np.float32).mean((0, 1))
    depth = np.linspace(0, 1, height - horizon, dtype=np.float32)[:, None, None]
    ground = ground * (0.84 + 0.2 * depth)
    return np.concatenate([np.asarray(upper, np.float32), ground.astype(np.float32)])


def sky(weather: str, width: int, height: int, rng) -> np.ndarray:
    top, bottom = {
        "sunny": ((82, 142, 214), (188, 216, 238)),
        "cloudy": ((150, 160, 172), (206, 210, 214)),
        "sunset": ((104, 96, 148), (250, 178, 104)),
    }[weather]
    fall = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    colors = (1 - fall) * np.float32(top) + fall * np.float32(bottom)
    clouds = noise(rng, height, width, height * 0.4, width * 0.4, 4) + (0.35 if weather == "cloudy" else 0)
    white = np.float32((255, 214, 190) if weather == "sunset" else (246, 246, 246))
    cover = np.clip(clouds * 0.9, 0, 0.8)[..., None]
    return colors * (1 - cover) + white * cover


def skyline(picture: np.ndarray, place: str, rng) -> np.ndarray:
    """Hills, trees or the sea before the sky."""
    height, width = picture.shape[:2]
    if place == "beach":
        sea = round(height * rng.uniform(0.72, 0.82))
        waves = noise(rng, height - sea, width, 2, 40, 2)[..., None]
        picture[sea:] = np.float32((46, 116, 156)) + 16 * waves
        return picture
    rows = np.arange(height)[:, None]
    ridge = height * (rng.uniform(0.6, 0.78) - 0.14 * noise(rng, 1, width, 1, width * 0.4, 2))
    hill = np.float32((188, 200, 214) if place == "snow" else (96, 124, 116))
    picture = np.where((rows > ridge)[..., None], hill * (0.9 + 0.1 * rng.random()), picture)
    tops = height * (0.86 - 0.1 * noise(rng, 1, width, 1, 10, 3))
    leaves = 1 + 0.25 * noise(rng, height, width, 4, 4, 2)[..., None]
    trees = np.float32((58, 74, 66) if place == "snow" else (50, 84, 44)) * leaves
    return np.where((rows > tops)[..., None], trees, picture)


def brick_wall(width: int, height: int, rng) -> np.ndarray:
    brick_height = rng.uniform(11, 15)
    rows = (np.arange(height) / brick_height)[:, None]
    columns = (np.arange(width) / (2.3 * brick_height))[None] + 0.5 * (rows.astype(int) % 2)
    tones = rng.uniform(0.84, 1.12, (int(rows.max()) + 1, int(columns.max()) + 2))[
        rows.astype(int), columns.astype(int)
    ]
    clay = np.float32((150, 88, 70)) * (tones * (1 + 0.08 * noise(rng, height, width, 3, 3)))[..., None]
    mortar = (rows % 1 < 0.14) | (columns % 1 < 0.07)
    return np.where(mortar[..., None], np.float32((176, 168, 158)), clay)


def grass(width, height, rng):
    near = np.linspace(0.4, 1, height, dtype=np.float32)[:, None]
    blades = 0.24 * near * noise(rng, height, width, 7, 2, 2) + 0.12 * noise(rng, height, width, 14, 70, 2)
    return np.float32((86, 132, 50)) * (1 + blades)[..., None]


def sand(width, height, rng):
    grains = 0.05 * noise(rng, height, width, 1.5, 1.5) + 0.07 * noise(rng, height, width, 9, 60, 2)
    return np.float32((216, 190, 146)) * (1 + grains)[..., None]


def snow(width, height, rng):
    drifts = 0.05 * noise(rng, height, width, 16, 90, 2) + 0.015 * noise(rng, height, width, 2, 2)
    return np.float32((222, 228, 238)) * (1 + drifts)[..., None]


def road(width, height, rng):
    depth = np.linspace(0.25, 1, height, dtype=np.float32)[:, None]
    across = (np.arange(width, dtype=np.float32)[None] / width - rng.uniform(0.2, 0.8)) / depth
    asphalt = np.float32((112, 113, 117)) * (1 + 0.12 * noise(rng, height, width, 1.5, 1.5, 2))[..., None]
    stripe = (np.abs(across) < 0.035) & (np.modf(2.2 / depth)[0] < 0.6)
    return np.where(stripe[..., None], np.float32((214, 212, 202)), asphalt)


def planks(width, height, rng):
    depth = np.linspace(0.35, 1, height, dtype=np.float32)[:, None]
    across = (np.arange(width, dtype=np.float32)[None] / width - 0.5) / depth * rng.uniform(4, 6) + 20
    tones = rng.uniform(0.82, 1.12, 64)[across.astype(int) % 64]
    veins = 1 + 0.1 * noise(rng, height, width, 40, 3, 2)
    gaps = 1 - 0.5 * (np.modf(across)[0] < 0.05)
    return np.float32((168, 116, 70)) * (tones * veins * gaps)[..., None]


def tiles(width, height, rng):
    depth = np.linspace(0.3, 1, height, dtype=np.float32)[:, None]
    across = (np.arange(width, dtype=np.float32)[None] / width - rng.uniform(0.3, 0.7)) / depth * 4 + 20
    away = np.broadcast_to(5 / depth, across.shape)
    tones = rng.uniform(0.94, 1.04, (32, 64))[away.astype(int) % 32, across.astype(int) % 64]
    joint = (np.modf(across)[0] < 0.05) | (np.modf(away)[0] < 0.06)
    marble = np.float32((196, 188, 178)) * (tones * (1 + 0.04 * noise(rng, height, width, 12, 20, 3)))[..., None]
    return np.where(joint[..., None], np.float32((142, 134, 126)), marble)


def water(width, height, rng):
    ripples = 0.14 * noise(rng, height, width, 3, 46, 2) + 0.1 * noise(rng, height, width, 9, 110, 2)
    return np.float32((44, 108, 142)) * (1 + ripples)[..., None]


GROUNDS = {
    "grass": grass,
    "beach": sand,
    "snow": snow,
    "road": road,
    "table": planks,
    "floor": tiles,
    "lake": water,
}
