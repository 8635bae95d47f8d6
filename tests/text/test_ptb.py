"""captioning/text/ptb.py: the tokens of Stanford's PTBTokenizer, recorded and live, and the scores that they give.

The comparison on real captions takes a COCO caption file that you name, because no data set is part of the project:

    CAPTIONS_JSON=annotations/captions_val2014.json python -m pytest tests/text/test_ptb.py -k captions_json

It prints how many captions differ between the two tokenizers and what that does to CIDEr and BLEU-4 (the first
caption of each image against its others). Without the variable the made-up captions below are compared.
"""

import json
import os
import time
from pathlib import Path

import pytest

from captioning.scoring.metrics import java_missing, score_captions, tokenize
from captioning.text.ptb import ptb_tokens

needs_java = pytest.mark.skipif(java_missing(), reason="needs Java")

# A caption, then its tokens as pycocoevalcap's PTBTokenizer (CoreNLP 3.4.1) gave them. ~ is a no-break space.
RECORDED = """\
A brown dog runs across the wet grass.
    a brown dog runs across the wet grass
The dog's owner doesn't mind that it's muddy.
    the dog 's owner does n't mind that it 's muddy
Two kids can't reach the swing, so they're jumping.
    two kids ca n't reach the swing so they 're jumping
We cannot see who's behind the children's tent.
    we can not see who 's behind the children 's tent
He's gonna jump and she'll wanna watch.
    he 's gon na jump and she 'll wan na watch
Y'all wouldn't've believed the boys' kites!
    y' all would n't 've believed the boys kites
I'd say they've got ta go; you'd better hurry.
    i 'd say they 've got ta go you 'd better hurry
A girl in rock 'n' roll clothes at 5 o'clock.
    a girl in rock 'n' roll clothes at 5 o'clock
'Tis a quiet street 'til the parade comes.
    't is a quiet street 'til the parade comes
Gimme that ball, says O'Brien to D'Angelo.
    gim me that ball says o'brien to d'angelo
An "old" car and a 'new' one are parked.
    an old car and a new one are parked
A sign that says “stop” hangs over the café’s door.
    a sign that says stop hangs over the café 's door
The boy doesn’t look at the teacher’s desk.
    the boy does n't look at the teacher 's desk
A man (in red) [left] waves {twice} at a <unk>.
    a man -lrb- in red -rrb- -lsb- left -rsb- waves -lcb- twice -rcb- at a <unk>
A black-and-white cat sits on a fold-up chair.
    a black-and-white cat sits on a fold-up chair
A five-year-old's T-shirt is blue-green.
    a five-year-old 's t-shirt is blue-green
A man--or a woman--stands - alone - on a hill.
    a man or a woman stands alone on a hill
A long road – with trees — leads home.
    a long road with trees leads home
A -- half-eaten --- sandwich ----- lies there.
    a half-eaten sandwich ----- lies there
Cars and/or bikes are parked w/ a truck.
    cars and/or bikes are parked w / a truck
A child wears a 1/2 price sticker 24/7.
    a child wears a 1/2 price sticker 24/7
Add 1 1/2 cups and ½ spoon at 3:30pm.
    add 1~1/2 cups and 1/2 spoon at 3:30 pm
The number 23 runner leads #5 by 2,000 yards.
    the number 23 runner leads # 5 by 2,000 yards
Tickets cost $5.00, £3 or 50¢ here.
    tickets cost $ 5.00 # 3 or 50 cents here
A 100% cotton shirt for $20 hangs at a B&B.
    a 100 % cotton shirt for $ 20 hangs at a b&b
The 1st and 2nd runners at 10 a.m. in the 1950s.
    the 1st and 2nd runners at 10 a.m. in the 1950s
A '50s diner and a 1980's jukebox.
    a '50s diner and a 1980 's jukebox
The U.S. flag flies over Washington D.C. today.
    the u.s. flag flies over washington d.c. today
Mr. Smith and Mrs. Jones meet Dr. Lee on Main St.
    mr. smith and mrs. jones meet dr. lee on main st.
A bus on St. James Ave. at No. 5 passes.
    a bus on st. james ave. at no. 5 passes
No. They say no, the fig. 2 shows etc.
    no they say no the fig. 2 shows etc.
John F. Kennedy Jr. waves from a T.V. set.
    john f. kennedy jr. waves from a t.v. set
A team plays vs. another, approx. 10 min. long.
    a team plays vs. another approx 10 min long
Wait... what is that?! A bear!!!
    wait what is that ?! a bear !!!
One dog ,two cats ; three birds : none fly .
    one dog two cats three birds none fly
Look,a plane:big and white;it lands.
    look a plane big and white it lands
A street sign reads www.example.com or mail@example.com.
    a street sign reads www.example.com or mail@example.com
Visit example.com/photos with a friend @home for #fun times.
    visit example.com/photos with a friend @home for #fun times
A man smiles :) at a sad dog :( today
    a man smiles :-rrb- at a sad dog :-lrb- today
A 6'2" player and a 5' fence.
    a 6 2 player and a 5 fence
A 4x4 truck, an F-16 jet and a 3-D poster.
    a 4x4 truck an f-16 jet and a 3-d poster
Kids play tug-o'-war & eat s'mores.
    kids play tug-o war & eat s'mores
A surfer catches a wave.The crowd cheers.
    a surfer catches a wave.the crowd cheers
The runner is No.1 in the race.
    the runner is no. 1 in the race
A cat & a dog, black/white/brown.
    a cat & a dog black/white/brown
A sign in *bold* letters under_score = 5 + 3.
    a sign in * bold * letters under_score = 5 + 3
El Niño café, naïve façade, Zoë und Käse.
    el niño café naïve façade zoë und käse
Собака бежит, ελληνικά and 日本 signs.
    собака бежит ελληνικά and 日本 signs
A 45° slope ™ with a heart ♥ and 🐶 emoji
    a 45 ° slope ™ with a heart ♥ and emoji
A man says &quot;hello&quot; &amp; leaves.
    a man says hello & leaves
Ma'am, c'mon, it's somethin' good ol' fun.
    ma'am c'mon it 's somethin' good ol' fun
There is more'n one; lemme see, whatcha doin'?
    there is more 'n one lem me see whatcha doin
A JET with AT&T ads, R&B singers and C++ books.
    a jet with at&t ads r&b singers and c++ books
The man, approx., is tall; the dog., small.
    the man approx. is tall the dog. small
A vitamin B. The bottle is red.
    a vitamin b the bottle is red
A plan by A. B. Miller for p. 7.
    a plan by a. b. miller for p. 7
The ratio 3:1, 1.5 and .5 or -5 and +7.
    the ratio 3:1 1.5 and .5 or -5 and +7
Phone 555-1234 or 1-800-555-1234 now.
    phone 555-1234 or 1-800-555-1234 now
A boy's-eye view of jack-o'-lanterns.
    a boy 's eye view of jack-o lanterns
A <b>bold</b> word, a < b and a > c.
    a <b> bold </b> word a < b and a > c
A woman at Mass. General hosp. smiles.
    a woman at mass. general hosp smiles
Don't! can't. won't? isn't, didn't; aren't: done
    do n't ca n't wo n't is n't did n't are n't done
A a the of in it s t n't 's
    a a the of in it s t n't 's
"""
PAIRS = [
    (caption, tokens.strip().replace("~", "\xa0"))
    for caption, tokens in zip(RECORDED.splitlines()[::2], RECORDED.splitlines()[1::2])
]


@pytest.mark.parametrize(("caption", "tokens"), PAIRS, ids=range(len(PAIRS)))
def test_python_tokens_are_the_recorded_ones(caption, tokens):
    assert " ".join(ptb_tokens(caption)) == tokens


@needs_java
def test_stanford_still_says_what_was_recorded():
    tokens, used = tokenize([caption for caption, _ in PAIRS], "ptb")
    assert used == "ptb"
    assert tokens == [recorded for _, recorded in PAIRS]


@needs_java
def test_our_call_of_stanford_equals_that_of_pycocoevalcap(capfd):
    from pycocoevalcap.tokenizer import ptbtokenizer

    if not os.access(Path(ptbtokenizer.__file__).parent, os.W_OK):
        pytest.skip("pycocoevalcap writes into its folder, which is read-only here")
    captions = [caption for caption, _ in PAIRS if caption.isascii()]
    theirs = ptbtokenizer.PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    capfd.readouterr()
    assert tokenize(captions, "ptb")[0] == [theirs[i][0] for i in range(len(captions))]
    assert capfd.readouterr() == ("", "")  # ours is silent


@needs_java
def test_captions_json(capsys):
    """How far the scores of the two tokenizers are apart, on $CAPTIONS_JSON or else on the made-up captions."""
    references = {i: [PAIRS[j % len(PAIRS)][0] for j in range(i, i + 5)] for i in range(len(PAIRS))}
    if path := os.environ.get("CAPTIONS_JSON"):
        references = {}
        for entry in json.loads(Path(path).read_text(encoding="utf-8"))["annotations"]:
            references.setdefault(entry["image_id"], []).append(entry["caption"])
        references = {key: captions for key, captions in references.items() if len(captions) > 1}
    captions = [caption for group in references.values() for caption in group]
    differ = sum(a != b for a, b in zip(tokenize(captions, "ptb")[0], tokenize(captions, "python")[0]))
    first = {key: group[0] for key, group in references.items()}
    others = {key: group[1:] for key, group in references.items()}
    ptb, python = (score_captions(first, others, tokenizer=t).values for t in ("ptb", "python"))
    with capsys.disabled():
        if path:
            print(f"\n{differ} of {len(captions)} captions differ")
            for name in ("cider", "bleu_4"):
                print(f"{name}: ptb {ptb[name]:.6f}, python {python[name]:.6f}")
    assert differ <= 0.001 * len(captions)
    assert python == pytest.approx(ptb, abs=0.002)


@pytest.mark.parametrize(
    "piece", ["a", "n", "a'", "n't", "-a", ".", "a.", "1.", "a@", "<a", "(555)", "é", "...", "&a;"]
)
def test_a_very_long_word_takes_no_long_time(piece):
    start = time.monotonic()
    ptb_tokens(piece * 3000)
    assert time.monotonic() - start < 5


def test_what_stanford_drops():
    assert ptb_tokens("") == ptb_tokens(' . , ! ? " -- \U0001f436 \u200d') == []
    assert ptb_tokens("stop!? -----") == ["stop", "!?", "-----"]  # these are not in pycocoevalcap's list
