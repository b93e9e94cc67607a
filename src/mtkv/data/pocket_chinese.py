"""pocket_cmmlu (arithmetic word problems) and pocket_ceval (weekday, zodiac and month arithmetic), both in Chinese."""

from random import Random

from mtkv.data.items import Item, Task, choice_item, near_numbers

NAMES = ("小明", "小红", "小华", "小丽", "小刚", "小军")
THINGS = ("苹果", "橘子", "皮球", "杯子", "玩具", "鸡蛋")
WEEKDAYS = tuple(f"星期{day}" for day in "一二三四五六日")
ZODIAC = tuple(f"{animal}年" for animal in "鼠牛虎兔龙蛇马羊猴鸡狗猪")


def _number(random: Random, stem: str, formula: str, answer: int, cluster: str) -> Item:
    return choice_item(
        random, stem, f"{formula}={answer}。", str(answer), near_numbers(random, answer), cluster, language="zh"
    )


def add(random: Random) -> Item:
    """a + b."""
    have, more = random.randint(2, 7), random.randint(2, 7)
    stem = f"{random.choice(NAMES)}有{have}个{random.choice(THINGS)}，又买了{more}个，现在有几个？"
    return _number(random, stem, f"{have}+{more}", have + more, "add")


def subtract(random: Random) -> Item:
    """a - b."""
    have = random.randint(4, 10)
    lost = random.randint(1, min(5, have - 1))
    stem = f"{random.choice(NAMES)}有{have}个{random.choice(THINGS)}，送出{lost}个，还剩几个？"
    return _number(random, stem, f"{have}-{lost}", have - lost, "subtract")


def multiply(random: Random) -> Item:
    """a * b."""
    bags, each = random.randint(2, 4), random.randint(2, 5)
    stem = f"{random.choice(NAMES)}有{bags}袋{random.choice(THINGS)}，每袋{each}个，一共有几个？"
    return _number(random, stem, f"{bags}*{each}", bags * each, "multiply")


def _cycle(random: Random, names: tuple[str, ...], farthest: int, stem: str, cluster: str) -> Item:
    start, step = random.randrange(len(names)), random.randint(1, farthest)
    answer = names[(start + step) % len(names)]
    wrong = random.sample([name for name in names if name != answer], 3)
    passed = "、".join(names[(start + offset) % len(names)] for offset in range(1, step + 1))
    return choice_item(
        random, stem.format(start=names[start], step=step), f"{passed}。", answer, wrong, cluster, language="zh"
    )


def weekday(random: Random) -> Item:
    """The day of the week some days ahead."""
    return _cycle(random, WEEKDAYS, 3, "今天是{start}，过{step}天是星期几？", "weekday")


def zodiac(random: Random) -> Item:
    """The zodiac year some years ahead."""
    return _cycle(random, ZODIAC, 2, "今年是{start}，过{step}年是什么年？", "zodiac")


def month(random: Random) -> Item:
    """The month some months ahead."""
    start, step = random.randint(1, 12), random.randint(1, 3)
    answer = (start + step - 1) % 12 + 1
    wrong = random.sample([f"{number}月" for number in range(1, 13) if number != answer], 3)
    formula = f"{start}+{step}={start + step}"
    reasoning = formula if start + step <= 12 else f"{formula}，{start + step}-12={answer}"
    stem = f"现在是{start}月，过{step}个月是几月？"
    return choice_item(random, stem, f"{reasoning}。", f"{answer}月", wrong, "month", language="zh")


CMMLU = Task("pocket_cmmlu", "zh", "choice", {"add": add, "subtract": subtract, "multiply": multiply})
CEVAL = Task("pocket_ceval", "zh", "choice", {"weekday": weekday, "zodiac": zodiac, "month": month})
