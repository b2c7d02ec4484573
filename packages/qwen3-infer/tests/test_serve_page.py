"""The chat page in headless Chromium, driven through its debugging pipe; the server's answers are known."""

import base64
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PICTURES = os.environ.get("QWEN3_PAGE_PICTURES")
"""A folder to keep pictures in."""


class Browser:
    """One page of a headless browser."""

    def __init__(self, program, profile):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4.
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--window-size=900,700", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *arguments],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._held, self._number, self._session = b"", 0, None
        self.requested = []
        (page,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def call(self, method, **parameters):
        self._number += 1
        order = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._out, json.dumps(order).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        while b"\0" not in self._held:
            part = os.read(self._in, 65536)
            assert part, "the browser has ended"
            self._held += part
        line, _, self._held = self._held.partition(b"\0")
        return json.loads(line)

    def run(self, script):
        """Return the value of JavaScript."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, name):
        if PICTURES:
            data = self.call("Page.captureScreenshot")["data"]
            (Path(PICTURES) / name).write_bytes(base64.b64decode(data))

    def close(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="module")
def server(start_server, serve_dir):
    return start_server(str(Path(__file__).with_name("scripted_server.py")), str(serve_dir))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is installed; looked for {', '.join(PROGRAMS)}")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, server, wait_until):
    """Return the browser with the page freshly loaded, and how to ask a question in it."""
    browser.requested.clear()
    load(browser, server, wait_until)
    browser.run("localStorage.clear()")
    load(browser, server, wait_until)

    def ask(text, *, wait=True):
        browser.run(f"document.getElementById('input').value = {json.dumps(text)}")
        browser.run("document.getElementById('send').click()")
        if wait:
            wait_until(lambda: browser.run("document.getElementById('send').textContent") == "Send")

    browser.ask = ask
    return browser


def load(browser, server, wait_until):
    browser.run("document.title = ''")
    browser.call("Page.navigate", url=server.url)
    wait_until(lambda: browser.run("document.title") == "Qwen3-scripted")


def texts(page, selector):
    return page.run(f"[...document.querySelectorAll('{selector}')].map((node) => node.textContent)")


def test_a_conversation_shows_questions_answers_and_folded_thoughts(page):
    page.ask("Good morning")
    page.ask("And to you, again?")
    assert texts(page, ".user .text") == ["Good morning", "And to you, again?"]
    assert texts(page, ".assistant .text") == ["Hello! I am Qwen3. What would you like to know?"] * 2
    assert texts(page, ".assistant .thought") == ["A greeting; I answer in kind."] * 2
    assert page.run("[...document.querySelectorAll('details')].map((node) => node.open)") == [False, False]
    assert "tokens" in texts(page, ".assistant .facts")[0]
    assert page.run("document.getElementById('key').checkVisibility()") is False  # no key is asked for
    assert page.run("messages.map((each) => each.role)") == ["user", "assistant"] * 2
    page.run("document.querySelector('details').open = true")
    page.picture("serve-conversation.png")


def test_what_the_model_says_is_text_and_never_markup(page):
    page.ask("Say markup, <img src=x onerror=alert(1)>")
    (text,) = texts(page, ".assistant .text")
    assert "<script>window.hacked = 1</script>" in text
    assert '<img src=x onerror="window.hacked = 2">' in text
    assert texts(page, ".assistant .thought") == ["The user wants <b>markup</b>."]
    assert page.run("window.hacked === undefined")
    assert page.run("document.querySelectorAll('main script, main img, main b').length") == 0
    # Even markup that got in could not run.
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 3\">')")
    assert page.run("new Promise((done) => setTimeout(() => done(window.hacked === undefined), 200))")


def test_markdown_is_rendered_and_code_can_be_copied(page):
    page.ask("Show markdown")
    for selector, found in (
        (".text h2", ["Two ways"]), (".text strong", ["bold"]), (".text li", ["one", "two"]),
        (".text td", ["1", "2"]),
        (".text pre code", ['def greet(name):\n    print(f"Hello, {name} <b>")\n']), (".text img", []),
        (".text a", ["two", "x"]), (".text pre button", ["Copy"]),
    ):  # fmt: skip
        assert texts(page, selector) == found
    link = "document.querySelector('.text a')"
    assert page.run(f"[{link}.href, {link}.target, {link}.rel]") == [
        "https://example.com/", "_blank", "noopener noreferrer",
    ]  # fmt: skip
    page.run("window.copied = []; navigator.clipboard.writeText = async (text) => window.copied.push(text)")
    page.run("document.querySelector('.text pre button').click()")
    page.run("document.querySelector('.assistant .actions button').click()")
    code, whole = page.run("new Promise((done) => setTimeout(() => done(window.copied), 50))")
    assert code == 'def greet(name):\n    print(f"Hello, {name} <b>")\n'
    assert whole.startswith("## Two ways")
    page.run("document.getElementById('log').scrollTop = 0")
    page.picture("serve-markdown.png")


def test_an_answer_is_regenerated_and_a_question_edited(page, wait_until):
    page.ask("Good morning")
    page.ask("Something else")
    page.run("document.querySelectorAll('.assistant .actions button')[1].click()")  # the first answer's
    wait_until(lambda: page.run("running === null && messages.length === 2"))
    assert texts(page, ".user .text") == ["Good morning"]
    assert len(texts(page, ".assistant .text")) == 1
    page.run("document.querySelectorAll('.user .actions button')[1].click()")
    page.run("document.querySelector('.user textarea').value = 'Good evening'")
    page.run("document.querySelector('.user .actions button').click()")
    wait_until(lambda: page.run("running === null && messages.length === 2"))
    assert texts(page, ".user .text") == ["Good evening"]


def test_conversations_outlive_the_page_and_can_be_deleted(page, server, wait_until):
    page.ask("Good morning")
    page.run("document.getElementById('clear').click()")
    page.ask("Say markup again")
    load(page, server, wait_until)
    assert texts(page, ".user .text") == ["Say markup again"]
    assert page.run("window.hacked === undefined")
    page.run("document.getElementById('open-history').click()")
    assert texts(page, "#list .row > :first-child") == ["Say markup again", "Good morning"]
    page.picture("serve-history.png")
    page.run("document.querySelectorAll('#list .row > :first-child')[1].click()")
    assert texts(page, ".user .text") == ["Good morning"]
    page.run("document.getElementById('open-history').click()")
    page.run("document.querySelectorAll('#list .row button')[1].click()")
    assert texts(page, "#list .row > :first-child") == ["Good morning"]
    page.run("document.getElementById('history').close()")
    page.run("localStorage.setItem('qwen3-conversations', '{broken')")
    load(page, server, wait_until)
    assert texts(page, ".message") == []


def test_settings_are_sent_kept_and_reset(page, server, wait_until):
    page.run("document.getElementById('open-settings').click()")
    for name, value in (("system", "Be brief."), ("temperature", "0.5"), ("max_tokens", "3")):
        page.run(f"document.getElementById('{name}').value = '{value}'")
    page.run("document.getElementById('settings').dispatchEvent(new Event('change'))")
    page.picture("serve-settings.png")
    page.run("document.getElementById('settings').close()")
    page.run(
        "window.sent = []; const before = fetch; "
        "fetch = (path, how) => {sent.push(how.body); return before(path, how)}"
    )
    page.ask("Good morning")
    sent = json.loads(page.run("sent[0]"))
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["max_tokens"], "top_p" in sent) == (0.5, 3, False)
    assert "cut at the longest length" in texts(page, ".assistant .facts")[0]
    load(page, server, wait_until)
    assert page.run("document.getElementById('system').value") == "Be brief."
    page.run("document.getElementById('reset').click()")
    load(page, server, wait_until)
    assert page.run("document.getElementById('system').value") == ""


def test_every_word_is_there_in_both_languages(page):
    assert page.run("Object.keys(WORDS.en).join()") == page.run("Object.keys(WORDS.zh).join()")
    used = page.run("[...document.querySelectorAll('[data-say]')].map((node) => node.dataset.say)")
    assert page.run(f"{json.dumps(used)}.every((name) => WORDS.en[name])")
    page.ask("Good morning")
    language = "document.getElementById('language')"
    page.run(f"{language}.value = 'zh'; {language}.dispatchEvent(new Event('change', {{bubbles: true}}))")
    assert texts(page, "#send") == ["\u53d1\u9001"]
    assert texts(page, ".user .who") == ["\u4f60"]
    assert page.run("document.documentElement.lang") == "zh-CN"
    page.picture("serve-chinese.png")


def test_stop_ends_an_answer_and_keeps_what_there_is(page, server, wait_until):
    page.ask("Something long", wait=False)
    wait_until(lambda: "again" in "".join(texts(page, ".assistant .text")))
    assert page.run("document.getElementById('send').textContent") == "Stop"
    page.run("document.getElementById('send').click()")
    wait_until(lambda: page.run("document.getElementById('send').textContent") == "Send")
    assert texts(page, ".assistant .facts") == ["Stopped."]
    wait_until(lambda: server.metrics()["qwen3_requests_running"] == 0)
    assert 0 < len(texts(page, ".assistant .text")[0]) < len("and again ") * 300
    page.ask("Good morning")
    assert len(texts(page, ".assistant .text")) == 2


def test_an_error_is_shown_and_the_question_kept(page):
    page.ask("Please break")
    (error,) = texts(page, "[role=alert]")
    assert "the model computes NaN" in error
    assert page.run("document.getElementById('input').value") == "Please break"
    assert page.run("messages.length") == 0
    page.picture("serve-error.png")
    page.ask("Good morning")
    assert len(texts(page, ".assistant .text")) == 1


def test_a_key_is_asked_for_when_the_server_wants_one(browser, start_server, serve_dir, wait_until):
    settings = json.dumps({"api_key": "sesame"})
    locked = start_server(str(Path(__file__).with_name("scripted_server.py")), str(serve_dir), settings)
    browser.call("Page.navigate", url=locked.url)
    wait_until(lambda: texts(browser, "[role=alert]"))
    assert "Incorrect API key" in texts(browser, "[role=alert]")[0]
    assert browser.run("document.getElementById('key').checkVisibility()")
    browser.run("document.getElementById('key').value = 'sesame'")
    browser.run("document.getElementById('input').value = 'Good morning'")
    browser.run("document.getElementById('send').click()")
    wait_until(
        lambda: texts(browser, ".assistant .text") == ["Hello! I am Qwen3. What would you like to know?"]
    )


def test_a_new_conversation_is_empty_and_nothing_comes_from_elsewhere(page, server):
    page.ask("Good morning")
    page.run("document.getElementById('clear').click()")
    assert texts(page, ".message") == []
    assert page.run("messages.length") == 0
    assert all(url.startswith((server.url, "data:")) for url in page.requested)


def test_both_colour_schemes_are_readable(page):
    colours = []
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        style = page.run(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        colours.append([sum(map(int, value[4:-1].split(", "))) for value in style])
    (light_text, light_back), (dark_text, dark_back) = colours
    assert light_back - light_text > 450
    assert dark_text - dark_back > 450


def test_a_server_that_is_gone_is_said(page, server):
    server.end(signal.SIGKILL)
    page.ask("Good morning")
    assert texts(page, "[role=alert]") == ["Error: The server cannot be reached."]
