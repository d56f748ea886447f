"""A client of WebDriver that runs headless Chromium with Debian's chromedriver."""

import asyncio
import base64
import shutil
import subprocess
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.asgi_server import listen, url_of

PROGRAMS = ("chromium", "chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key with which WebDriver marks references to elements."""
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Control": "\ue009", "ArrowRight": "\ue014"}
SELECT_ALL = f"{KEYS['Control']}a\ue000"
"""The last character releases the key Control."""
TIMEOUT_S = 20.0
POLL_S = 0.05
WIDE, PHONE = (1360, 900), (390, 844)


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Browser:
    """One window with an empty profile. Selectors are CSS; every action waits until an element matches."""

    def __init__(self, http: httpx.AsyncClient, session: str, timeout_s: float) -> None:
        self._http = http
        self._session = session
        self._timeout_s = timeout_s

    async def command(self, method: str, path: str, **body: Any) -> Any:
        content = body if method == "POST" else None
        response = await self._http.request(method, f"/session/{self._session}{path}", json=content)
        value = response.json()["value"]
        if response.is_error:
            raise WebDriverError(value["message"].splitlines()[0])
        return value

    async def cdp(self, name: str, **parameters: Any) -> Any:
        """Calls a method of the Chrome DevTools Protocol."""
        return await self.command("POST", "/goog/cdp/execute", cmd=name, params=parameters)

    async def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        mobile = size == PHONE
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        await self.cdp("Emulation.setDeviceMetricsOverride", **metrics)

    async def use_colour_scheme(self, scheme: str) -> None:
        await self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def open(self, url: str) -> None:
        await self.command("POST", "/url", url=url)

    async def script(self, script: str, *arguments: Any) -> Any:
        """The result of the body of a function, which has the arguments as `arguments`."""
        return await self.command("POST", "/execute/sync", script=script, args=list(arguments))

    async def wait_for(self, condition: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression as soon as it is true."""
        try:
            async with asyncio.timeout(self._timeout_s):
                while not (value := await self.script(f"return {condition}", *arguments)):
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"{condition} {arguments} is still false after {self._timeout_s:g} s") from None
        return value

    async def find(self, selector: str) -> str:
        """The id of the first visible element."""
        script = "[...document.querySelectorAll(arguments[0])].find((e) => e.checkVisibility())"
        element: dict[str, str] = await self.wait_for(script, selector)
        return element[ELEMENT]

    async def click(self, selector: str) -> None:
        await self.command("POST", f"/element/{await self.find(selector)}/click")

    async def type(self, selector: str, text: str, clear: bool = True) -> None:
        element = await self.find(selector)
        # WebDriver's own command to clear an element sends no `input` event, which the page listens to.
        keys = SELECT_ALL + text if clear else text
        await self.command("POST", f"/element/{element}/value", text=keys)

    async def press(self, key: str) -> None:
        """Presses a key of `KEYS` for the element that has the focus."""
        strokes = [{"type": kind, "value": KEYS[key]} for kind in ("keyDown", "keyUp")]
        await self.command("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    async def select(self, selector: str, value: str) -> None:
        """Chooses an option of a `select` element."""
        element = {ELEMENT: await self.find(selector)}
        change = "arguments[0].dispatchEvent(new Event('change', {bubbles: true}))"
        await self.script(f"arguments[0].value = arguments[1]; {change}", element, value)

    async def choose_file(self, selector: str, path: Path) -> None:
        elements = await self.command("POST", "/elements", using="css selector", value=selector)
        await self.command("POST", f"/element/{elements[0][ELEMENT]}/value", text=str(path))

    async def drag(self, selector: str, *points: tuple[float, float]) -> None:
        """Draws a line over an element; coordinates are shares of its width and height."""
        element = {ELEMENT: await self.find(selector)}
        script = "const b = arguments[0].getBoundingClientRect(); return [b.width, b.height]"
        width, height = await self.script(script, element)
        moves = [
            {
                "type": "pointerMove",
                "duration": 20,
                "origin": element,
                "x": round((x - 0.5) * width),
                "y": round((y - 0.5) * height),
            }
            for x, y in points
        ]
        down, up = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
        pointer = {"type": "pointer", "id": "mouse", "actions": [moves[0], down, *moves[1:], up]}
        await self.command("POST", "/actions", actions=[pointer])

    async def text(self, selector: str) -> str:
        text: str = await self.command("GET", f"/element/{await self.find(selector)}/text")
        return text

    async def count(self, selector: str) -> int:
        count: int = await self.script("return document.querySelectorAll(arguments[0]).length", selector)
        return count

    async def wait_for_text(self, selector: str, part: str) -> None:
        await self.wait_for(
            "[...document.querySelectorAll(arguments[0])].some((e) => e.textContent.includes(arguments[1]))",
            selector,
            part,
        )

    async def screenshot(self) -> bytes:
        """The visible part of the page as a png file."""
        return base64.b64decode(await self.command("GET", "/screenshot"))

    async def problems(self) -> list[str]:
        """The errors and warnings in the console since the last call, such as violations of a security policy."""
        return [entry["message"] for entry in await self.command("POST", "/se/log", type="browser")]


class WebDriverError(Exception):
    """A command failed. The message is that of the driver."""


@contextmanager
def open_session() -> Iterator[tuple[str, str]]:
    """Runs chromedriver and Chromium for the duration of the block. Yields the driver's URL and the session's id."""
    with listen() as listener:
        url = url_of(listener)
    process = subprocess.Popen(["chromedriver", f"--port={url.rpartition(':')[2]}"], stdout=-3, stderr=-3)
    try:
        with httpx.Client(base_url=url, timeout=60) as http:
            _wait_until_ready(http)
            response = http.post("/session", json={"capabilities": {"alwaysMatch": _capabilities()}})
            session = response.raise_for_status().json()["value"]["sessionId"]
            try:
                yield url, session
            finally:
                http.delete(f"/session/{session}")
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def open_browser(driver_url: str, session: str, timeout_s: float = TIMEOUT_S) -> AsyncGenerator[Browser, None]:
    """The window of a session, with an empty page. Storage belongs to an origin, so each service has its own."""
    async with httpx.AsyncClient(base_url=driver_url, timeout=60) as http:
        browser = Browser(http, session, timeout_s)
        await browser.open("about:blank")
        await browser.resize(WIDE)
        await browser.use_colour_scheme("light")
        await browser.problems()
        yield browser


def _capabilities() -> dict[str, Any]:
    options = {
        "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
        "binary": shutil.which("chromium"),
    }
    return {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "WARNING"}}


def _wait_until_ready(http: httpx.Client) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        with suppress(httpx.TransportError):
            if http.get("/status").json()["value"]["ready"]:
                return
        time.sleep(POLL_S)
    raise TimeoutError(f"chromedriver is not ready after {TIMEOUT_S:g} s")
