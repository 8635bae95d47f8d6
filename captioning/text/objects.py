"""Everyday objects by their English words: what captions name, and which of ImageNet's classes show them.

    named_objects("two kittens on a red couch".split())     # {"cat", "couch"}
    names("an animal on a couch".split(), "cat")            # True: a broader word names it too

The objects are COCO's 80 categories (Lin et al. 2014), some of them joined, with the words that people use for them.
"""

from functools import cache

# Object: other words for it. Plurals in "s" and "es" are added; a phrase goes before the words that it is made of.
SYNONYMS = {
    "person": "man woman boy girl child kid baby toddler lady guy player skier snowboarder surfer skateboarder rider "
    "people men women children person adult couple crowd group batter catcher umpire chef",
    "bicycle": "bike cyclist",
    "car": "taxi cab sedan suv automobile jeep convertible",
    "motorcycle": "motorbike moped scooter dirtbike",
    "airplane": "plane jet aircraft airliner biplane propeller plane",
    "bus": "double decker buses",
    "train": "locomotive tram streetcar trolley railway subway",
    "truck": "pickup lorry firetruck fire truck fire engine",
    "boat": "ship canoe kayak sailboat yacht ferry gondola raft",
    "traffic light": "stoplight traffic signal stop light street light",
    "fire hydrant": "hydrant",
    "sign": "stop sign street sign",
    "parking meter": "meter",
    "bench": "",
    "bird": "duck goose geese seagull gull parrot pigeon owl swan eagle pelican peacock chicken rooster flamingo",
    "cat": "kitten kitty",
    "dog": "puppy puppies terrier poodle bulldog retriever",
    "horse": "pony ponies foal horseback",
    "sheep": "lamb ram ewe",
    "cow": "cattle bull calf calves ox oxen",
    "elephant": "",
    "bear": "polar bear cub",
    "zebra": "",
    "giraffe": "",
    "backpack": "rucksack knapsack",
    "umbrella": "parasol",
    "handbag": "purse bag",
    "tie": "necktie bow tie",
    "suitcase": "luggage baggage",
    "frisbee": "disc",
    "ski": "skiing skier",
    "snowboard": "snowboarding snowboarder",
    "ball": "baseball basketball soccer football",
    "kite": "",
    "bat": "baseball bat",
    "glove": "mitt baseball glove",
    "skateboard": "skateboarding skateboarder skate board",
    "surfboard": "surfing surfer surf board",
    "racket": "racquet tennis tennis racket tennis racquet",
    "bottle": "",
    "glass": "wine glass wine",
    "cup": "mug coffee tea",
    "fork": "",
    "knife": "knives",
    "spoon": "",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger hamburger cheeseburger sub",
    "orange": "oranges tangerine",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog",
    "pizza": "",
    "donut": "doughnut",
    "cake": "cupcake",
    "chair": "armchair stool",
    "couch": "sofa loveseat",
    "plant": "potted plant flower",
    "bed": "bunk",
    "table": "dining table desk",
    "toilet": "urinal",
    "television": "tv monitor screen",
    "laptop": "computer notebook",
    "mouse": "computer mouse",
    "remote": "wii remote game controller controller",
    "keyboard": "",
    "phone": "cellphone cell phone smartphone telephone",
    "microwave": "",
    "oven": "stove",
    "toaster": "",
    "sink": "washbasin",
    "refrigerator": "fridge freezer",
    "book": "bookshelf",
    "clock": "clock tower",
    "vase": "",
    "scissors": "scissor",
    "teddy bear": "teddy stuffed bear stuffed animal toy bear",
    "hair drier": "hair dryer blow dryer",
    "toothbrush": "",
}
PHRASES = (
    "propeller plane, double decker, fire truck, fire engine, traffic signal, stop light, street light, stop sign, "
)
PHRASES += "street sign, polar bear, bow tie, baseball bat, baseball glove, skate board, surf board, tennis racket, "
PHRASES += (
    "tennis racquet, wine glass, potted plant, dining table, computer mouse, wii remote, game controller, cell phone, "
)
PHRASES += "clock tower, stuffed bear, stuffed animal, toy bear, hair dryer, blow dryer"
# A plain broader word: the objects that it also names.
BROADER = {
    "animal": "bird cat dog horse sheep cow elephant bear zebra giraffe",
    "vehicle": "car motorcycle bus train truck",
    "food": "banana apple sandwich orange broccoli carrot hot dog pizza donut cake",
    "fruit": "banana apple orange",
    "vegetable": "broccoli carrot",
    "dessert": "donut cake",
    "computer": "laptop keyboard mouse",
    "kitchen": "microwave oven toaster sink refrigerator",
    "bathroom": "toilet sink",
    "furniture": "chair couch bed table bench",
    "toy": "teddy bear",
}
# Which of ImageNet's 1,000 classes show an object: numbers from 0 in the order of its synsets.
CLASSES = {
    "dog": [*range(151, 269)],
    "cat": [*range(281, 286)],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "bear": [294, 295, 296, 297],
    "elephant": [101, 385, 386],
    "zebra": [340],
    "horse": [339],
    "sheep": [348, 349],
    "cow": [345],
    "bus": [654, 779, 874],
    "train": [466, 547, 565, 705, 820, 829],
    "truck": [555, 569, 675, 717, 864, 867],
    "car": [436, 468, 511, 609, 627, 656, 661, 751, 817],
    "motorcycle": [665, 670],
    "bicycle": [444, 671],
    "airplane": [404, 895],
    "boat": [472, 484, 510, 554, 576, 625, 628, 780, 814, 871, 914],
    "traffic light": [920],
    "parking meter": [704],
    "bench": [703],
    "umbrella": [879],
    "backpack": [414],
    "handbag": [748],
    "tie": [457, 906],
    "bottle": [440, 737, 898, 907],
    "cup": [504, 967, 968],
    "banana": [954],
    "apple": [948],
    "orange": [950],
    "broccoli": [937],
    "sandwich": [933],
    "hot dog": [934],
    "pizza": [963],
    "couch": [831],
    "bed": [564],
    "toilet": [861],
    "television": [598, 851],
    "laptop": [620, 681],
    "mouse": [673],
    "remote": [761],
    "keyboard": [508, 878],
    "phone": [487],
    "microwave": [651],
    "oven": [827],
    "toaster": [859],
    "sink": [896],
    "refrigerator": [760],
    "clock": [409, 530, 892],
    "vase": [883],
    "teddy bear": [850],
}


def with_plurals(word: str) -> list[str]:
    return [word, f"{word}s", f"{word}es"]


@cache
def words_of(name: str) -> tuple[str, ...]:
    """All words and phrases that name an object, itself first."""
    synonyms = SYNONYMS[name]
    phrases = [phrase for phrase in PHRASES.split(", ") if phrase in synonyms]
    for phrase in phrases:
        synonyms = synonyms.replace(phrase, "")
    every = [name, *phrases, *synonyms.split()]
    return tuple(dict.fromkeys(form for word in every for form in with_plurals(word)))


@cache
def forms() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(a word or phrase, the objects that it names), those of several words first."""
    found: dict[str, list[str]] = {}
    for name in SYNONYMS:
        for form in words_of(name):
            found.setdefault(form, []).append(name)
    return tuple((form, tuple(found[form])) for form in sorted(found, key=lambda form: (-form.count(" "), form)))


@cache
def broader_words(name: str) -> tuple[str, ...]:
    """Plain broader words for an object, and their plurals: "animal" and "animals" for "cat"."""
    words = [word for word, names in BROADER.items() if f" {name} " in f" {names} "]
    return tuple(form for word in words for form in with_plurals(word))


def named_objects(tokens: list[str]) -> set[str]:
    """The objects that a caption names. A word counts once: "hot dog" is no dog, "teddy bear" no bear."""
    text, found = f" {' '.join(tokens)} ", set()
    words = set(tokens)
    for form, names in forms():
        if form.split(" ", 1)[0] in words and f" {form} " in text:
            found.update(names)
            text = text.replace(f" {form} ", " , ") if " " in form else text
    return found


def names(tokens: list[str], name: str) -> bool:
    """Whether a caption names the object `name`, if only by a plain broader word."""
    return name in named_objects(tokens) or not set(broader_words(name)).isdisjoint(tokens)
