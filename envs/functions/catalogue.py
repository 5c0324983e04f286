"""The tools of the generated tasks, and the chains in which one's result is another's argument."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from envs.functions.tools import Draw, Parameter, Tool, code, number

CITIES = (
    *("Paris", "Rome", "Oslo", "Madrid", "Vienna", "Lisbon", "Athens", "Dublin", "Prague"),
    *("Tokyo", "Cairo", "Lima", "Boston", "Denver", "Sydney", "Nairobi", "Toronto", "Seoul"),
)
PEOPLE = ("Ada Park", "Ben Ortiz", "Carla Weiss", "Dev Patel", "Eva Lind", "Finn Moore", "Gina Rao")
PRODUCTS = (
    "desk lamp",
    "office chair",
    "water bottle",
    "backpack",
    "keyboard",
    "yoga mat",
    "kettle",
)
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "SEK")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TITLES = ("team lunch", "dentist", "budget review", "yoga class", "piano lesson")
TEXTS = ("I am running late", "The report is ready", "See you tomorrow", "Call me back")


def _of(values: Sequence[Any]) -> Draw:
    return lambda rng: rng.choice(values)


def _from(low: int, high: int, step: int = 1) -> Draw:
    return lambda rng: rng.randrange(low, high + 1, step)


def _text(values: Sequence[str], about: str) -> Parameter:
    return Parameter({"type": "string", "description": about}, _of(values))


def _whole(low: int, high: int, about: str) -> Parameter:
    return Parameter({"type": "integer", "description": about}, _from(low, high))


def _choice(values: Sequence[str], about: str, default: str, phrase: str) -> Parameter:
    schema = {"type": "string", "enum": list(values), "description": about, "default": default}
    return Parameter(schema, _of(values), default, phrase)


def _result_of(pattern: str, about: str) -> Parameter:
    return Parameter({"type": "string", "description": about}, _of((pattern,)))


def _known(value: str, prefix: str, what: str) -> str:
    """An identifier that some tool has given out. Raises LookupError for another text."""
    if not re.fullmatch(rf"{prefix}\d{{4}}", value):
        raise LookupError(f"there is no {what} {value!r}")
    return value


def _weather(city: str, unit: str = "celsius") -> dict[str, Any]:
    celsius = number("weather", city, low=-10, high=36)
    degrees = celsius if unit == "celsius" else celsius * 9 // 5 + 32
    return {"city": city, "temperature": degrees, "unit": unit}


def _convert(amount: float, source: str, target: str) -> dict[str, Any]:
    rate = number("rate", *sorted((source, target)), low=50, high=150) / 100
    return {"amount": round(amount * (rate if source < target else 1 / rate), 2), "in": target}


def _price(product: str) -> dict[str, Any]:
    return {"product": product, "price": number("price", product, low=5, high=200), "in": "EUR"}


def _days(rng: Random) -> list[str]:
    return [DAYS[i] for i in sorted(rng.sample(range(len(DAYS)), rng.randint(1, 3)))]


_CITY = _text(CITIES, "The name of the city.")
_FROM, _TO = _text(CITIES[:9], "The city to start from."), _text(CITIES[9:], "The city to go to.")
_CURRENCY = {"type": "string", "description": "A currency's code of three letters."}
_SOURCE = Parameter(_CURRENCY, _of(CURRENCIES[:3]))
_TARGET = Parameter(_CURRENCY, _of(CURRENCIES[3:]))
_EXPRESS = Parameter(
    {"type": "boolean", "description": "Deliver by express.", "default": False},
    _of((True,)),
    False,
    " by express",
)

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "get_weather",
            "The weather in a city now.",
            "city",
            {
                "city": _CITY,
                "unit": _choice(
                    ("celsius", "fahrenheit"), "The unit of degrees.", "celsius", " in {unit}"
                ),
            },
            _weather,
            "temperature",
            ("How warm is it in {city} now{unit}?", "What is the weather like in {city}{unit}?"),
        ),
        Tool(
            "get_forecast",
            "The weather that is expected in a city.",
            "city",
            {"city": _CITY, "days": _whole(1, 7, "How many days ahead.")},
            lambda city, days: {"temperature": number("forecast", city, days, low=-10, high=36)},
            "temperature",
            (
                "How warm will it be in {city} in {days} days?",
                "I need the forecast for {city}, {days} days ahead.",
            ),
        ),
        Tool(
            "get_population",
            "How many people live in a city.",
            "city",
            {"city": _CITY},
            lambda city: {"population": 1000 * number("people", city, low=200, high=9000)},
            "population",
            ("How many people live in {city}?", "What is the population of {city}?"),
        ),
        Tool(
            "convert_currency",
            "Convert an amount of money from one currency into another.",
            "money",
            {
                "amount": Parameter(
                    {"type": "number", "description": "The amount to convert."},
                    lambda rng: rng.choice([rng.randint(2, 900), rng.randint(9, 999) / 2]),
                ),
                "source": _SOURCE,
                "target": _TARGET,
            },
            _convert,
            "amount",
            ("What is {amount} {source} in {target}?", "Convert {amount} {source} to {target}."),
        ),
        Tool(
            "get_exchange_rate",
            "The rate between two currencies.",
            "money",
            {"source": _SOURCE, "target": _TARGET},
            lambda source, target: {"rate": _convert(1, source, target)["amount"]},
            "rate",
            ("What is the exchange rate from {source} to {target}?",),
        ),
        Tool(
            "get_price",
            "The price of a product in euros.",
            "shop",
            {"product": _text(PRODUCTS, "The name of the product.")},
            _price,
            "price",
            ("How much is the {product}?", "What does the {product} cost?"),
        ),
        Tool(
            "get_stock",
            "How many pieces of a product are in stock.",
            "shop",
            {"product": _text(PRODUCTS, "The name of the product.")},
            lambda product: {"pieces": number("stock", product, high=60)},
            "pieces",
            ("How many pieces of the {product} are in stock?",),
        ),
        Tool(
            "place_order",
            "Order a product.",
            "shop",
            {
                "product": _text(PRODUCTS, "The name of the product."),
                "quantity": _whole(1, 9, "How many pieces."),
                "express": _EXPRESS,
            },
            lambda product, quantity, express=False: {
                "order_id": code("OR", product, quantity, express)
            },
            "order_id",
            ("Order {quantity} pieces of the {product}{express}.",),
        ),
        Tool(
            "track_order",
            "Where an order is.",
            "shop",
            {"order_id": _result_of("OR1234", "The order's id, such as OR1234.")},
            lambda order_id: {
                "status": ("packed", "sent", "delivered", "delayed")[
                    number("track", _known(order_id, "OR", "order"), high=4)
                ]
            },
            "status",
        ),
        Tool(
            "get_user",
            "The id of a customer.",
            "user",
            {"name": _text(PEOPLE, "The customer's full name.")},
            lambda name: {"user_id": code("US", name)},
            "user_id",
            ("Which user id does {name} have?",),
        ),
        Tool(
            "get_last_order",
            "The id of a customer's last order.",
            "user",
            {"user_id": _result_of("US1234", "The customer's id, such as US1234.")},
            lambda user_id: {"order_id": code("OR", _known(user_id, "US", "user"))},
            "order_id",
        ),
        Tool(
            "search_flights",
            "The next flight between two cities.",
            "travel",
            {"origin": _FROM, "destination": _TO},
            lambda origin, destination: {"flight_id": code("FL", origin, destination)},
            "flight_id",
            ("Find the next flight from {origin} to {destination}.",),
        ),
        Tool(
            "book_flight",
            "Book seats on a flight.",
            "travel",
            {
                "flight_id": _result_of("FL1234", "The flight's id, such as FL1234."),
                "passengers": _whole(1, 6, "How many people fly."),
            },
            lambda flight_id, passengers: {
                "booking": code("BK", _known(flight_id, "FL", "flight"), passengers)
            },
            "booking",
        ),
        Tool(
            "create_event",
            "Put an event into the calendar.",
            "time",
            {
                "title": _text(TITLES, "What the event is called."),
                "day": _text(DAYS, "The day of the week."),
                "hour": _whole(7, 20, "The hour at which it starts, 0 to 23."),
            },
            lambda title, day, hour: {"event_id": code("EV", title, day, hour)},
            "event_id",
            ("Put '{title}' into my calendar for {day} at {hour}:00.",),
        ),
        Tool(
            "set_alarm",
            "Set an alarm that repeats.",
            "time",
            {
                "hour": _whole(5, 11, "The hour, 0 to 23."),
                "minute": Parameter(
                    {"type": "integer", "description": "0 to 59."}, _from(10, 55, 5)
                ),
                "days": Parameter(
                    {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "The days of the week.",
                    },
                    _days,
                ),
            },
            lambda hour, minute, days: {"alarm_id": code("AL", hour, minute, days)},
            "alarm_id",
            (
                "Wake me at {hour}:{minute} on {days}.",
                "Set an alarm for {hour}:{minute} on {days}.",
            ),
        ),
        Tool(
            "send_message",
            "Send a text message.",
            "talk",
            {
                "to": _text(PEOPLE, "Who receives it."),
                "text": _text(TEXTS, "What it says."),
            },
            lambda to, text: {"message_id": code("MS", to, text)},
            "message_id",
            ("Text {to}: '{text}'.", "Send {to} the message '{text}'."),
        ),
        Tool(
            "get_air_quality",
            "The air quality index of a city.",
            "city",
            {"city": _CITY},
            lambda city: {"index": number("air", city, low=5, high=180)},
            "index",
            ("How good is the air in {city}?", "What is the air quality in {city}?"),
            trained=False,
        ),
        Tool(
            "set_thermostat",
            "Set the temperature of a room.",
            "home",
            {
                "room": _text(("kitchen", "bedroom", "office", "hall"), "The room."),
                "degrees": _whole(15, 25, "Degrees Celsius."),
            },
            lambda room, degrees: {"setting_id": code("TH", room, degrees)},
            "setting_id",
            ("Heat the {room} to {degrees} degrees.", "Set the {room} to {degrees} degrees."),
            trained=False,
        ),
        Tool(
            "search_trains",
            "The next train between two cities.",
            "travel",
            {"origin": _FROM, "destination": _TO},
            lambda origin, destination: {"train_id": code("TR", origin, destination)},
            "train_id",
            ("Find the next train from {origin} to {destination}.",),
            trained=False,
        ),
        Tool(
            "book_train",
            "Reserve seats on a train.",
            "travel",
            {
                "train_id": _result_of("TR1234", "The train's id, such as TR1234."),
                "seats": _whole(1, 6, "How many seats."),
            },
            lambda train_id, seats: {
                "reservation": code("RS", _known(train_id, "TR", "train"), seats)
            },
            "reservation",
            trained=False,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Chain:
    """Calls one after another. `links[i]` says which arguments of step i are fields of the result
    before it; `fixed[i]` gives arguments that no question mentions."""

    tools: tuple[str, ...]
    question: str
    links: tuple[Mapping[str, str], ...]
    fixed: tuple[Mapping[str, Any], ...] = ()


CHAINS: dict[str, Chain] = {
    "flight": Chain(
        ("search_flights", "book_flight"),
        "Book the next flight from {origin} to {destination} for {passengers} people.",
        ({}, {"flight_id": "flight_id"}),
    ),
    "order": Chain(
        ("get_user", "get_last_order", "track_order"),
        "Where is the last order of {name}?",
        ({}, {"user_id": "user_id"}, {"order_id": "order_id"}),
    ),
    "price": Chain(
        ("get_price", "convert_currency"),
        "How much is the {product} in {target}?",
        ({}, {"amount": "price"}),
        ({}, {"source": "EUR"}),
    ),
    "delivery": Chain(
        ("place_order", "track_order"),
        "Order {quantity} pieces of the {product}{express} and tell me where the order is.",
        ({}, {"order_id": "order_id"}),
    ),
    "train": Chain(
        ("search_trains", "book_train"),
        "Reserve {seats} seats on the next train from {origin} to {destination}.",
        ({}, {"train_id": "train_id"}),
    ),
}
"""Chains by name; one whose tools are not all trained stands in the split `unseen`."""
