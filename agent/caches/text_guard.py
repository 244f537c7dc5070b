"""What must be equal in two English texts before their distance is looked at.

    text_signature("Don't turn on 2 lamps")  ->  "1|2|on"       never near "2|... off"

Sentence embeddings put "turn the light on" beside "turn the light off", and "stop" beside "don't
stop": they have nearly all words in common. So what turns an answer round is compared word by
word: how many negations there are, the numbers in their order with their units, and words that
have an opposite. Texts with different signatures never meet in the cache, whatever their distance.

This is a list of words, no grammar. It does not see who does what to whom ("from A to B", "from B
to A"), nor opposites that are not in the list; what it lets through is what the calibrated
threshold is for. A paraphrase that says it with other words of the list is computed again.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+|%")
_CONTRACTED = re.compile(r"n['\u2019]t\b")  # don't

NEGATIONS = """
no not never none nobody nothing nowhere neither nor without cannot except unless hardly
dont doesnt didnt isnt arent wasnt werent cant couldnt wont wouldnt shouldnt mustnt hasnt havent
hadnt"""

# "one" is a pronoun more often than a number, "second" a unit.
NUMBERS = """
zero=0 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 ten=10 eleven=11 twelve=12
thirteen=13 fourteen=14 fifteen=15 sixteen=16 seventeen=17 eighteen=18 nineteen=19 twenty=20
thirty=30 forty=40 fifty=50 sixty=60 seventy=70 eighty=80 ninety=90 hundred=100 thousand=1000
million=1000000 dozen=12 half=1/2 quarter=1/4"""

UNITS = """
second minute hour day week month year percent degree metre meter kilometre kilometer mile gram
kilogram litre liter watt volt kelvin celsius fahrenheit euro dollar pound"""

# Words of one line mean the same here; every line has its opposite among the others.
SIDES = """
on
off
in into inside indoor indoors
out outside outdoor outdoors
up upper upstairs
down lower downstairs
open opens opened
close closes closed shut shuts
opening
closing shutting
start starts started begin
stop stops stopped cancel end
pause pauses paused
unpause resume continue
lock locks locked
unlock unlocks unlocked
mute mutes muted
unmute unmutes unmuted
enable enables enabled allow allows allowed
disable disables disabled forbid deny denies denied
activate activates activated
deactivate deactivates deactivated
connect connects connected
disconnect disconnects disconnected
add adds added
remove removes removed delete deletes deleted
increase increases increased raise raises raised
decrease decreases decreased reduce reduces reduced
more
less fewer
most
least
max maximum highest
min minimum lowest
high
low
left
right
first
last
next
previous
before earlier
after later
above over
below under beneath
always
sometimes
true
false
yes
all every each
any some
and
or
hot warm warmer hotter
cold cool cooler colder
full
empty
bright brighter
dark darker dim dimmer
fast faster
slow slower
buy
sell
win
lose
push
pull
accept
reject
old
new
many
much
front
back
show
hide
arrive arrives arrival
leave leaves departure"""

_NEGATIONS = frozenset(NEGATIONS.split())
_NUMBERS = dict(pair.split("=") for pair in NUMBERS.split())
_UNITS = {form: unit for unit in UNITS.split() for form in (unit, f"{unit}s")} | {"%": "percent"}
_SIDES = {form: forms[0] for line in SIDES.split("\n") if (forms := line.split()) for form in forms}


def text_signature(text: str) -> str:
    """Negations, numbers with units, and words with an opposite, in a form to compare."""
    words = _WORD.findall(_CONTRACTED.sub(" not", text.casefold()))
    negations = sum(word in _NEGATIONS for word in words)
    numbers = [number for number in map(_number, words) if number]
    sides = sorted({_SIDES[word] for word in words if word in _SIDES})
    return f"{negations}|{' '.join(numbers)}|{' '.join(sides)}"


def _number(word: str) -> str:
    """A number or a unit in one form; "" for other words."""
    if word[0].isdigit():
        return word.replace(",", ".")
    return _NUMBERS.get(word) or _UNITS.get(word, "")
