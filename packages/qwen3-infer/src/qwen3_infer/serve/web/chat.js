"use strict";
// Markdown is rendered with markup switched off; all else only ever becomes text nodes.
const $ = (id) => document.getElementById(id);
const markdown = globalThis.markdownit({ html: false, linkify: false, breaks: true }).disable("image");
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
let messages = [];
let conversation = crypto.randomUUID?.() ?? String(Date.now());
let model = null;
let running = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(name, action) {
  const made = element("button", "small", say(name));
  made.type = "button";
  made.addEventListener("click", () => action(made));
  return made;
}

async function copy(text, from) {
  await navigator.clipboard.writeText(text).catch(() => {
    // Not allowed outside of HTTPS and localhost: by a selection.
    const held = element("textarea", "", text);
    document.body.append(held);
    held.select();
    document.execCommand("copy");
    held.remove();
  });
  from.textContent = say("copied");
  setTimeout(() => { from.textContent = say("copy"); }, 1500);
}

function renderMarkdown(node, text) {
  node.innerHTML = markdown.render(text).trim();
  for (const link of node.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const block of node.querySelectorAll("pre")) {
    const code = block.textContent;
    block.append(button("copy", (from) => copy(code, from)));
  }
}

function follow() {
  const log = $("log");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
}

function show(node) {
  $("hint").hidden = true;
  $("log").append(node);
  $("log").scrollTop = $("log").scrollHeight;
}

function showError(text) {
  const box = element("div", "error", say("error") + text);
  box.setAttribute("role", "alert");
  show(box);
}

function headers() {
  const made = { "Content-Type": "application/json" };
  if ($("key").value) made.Authorization = "Bearer " + $("key").value;
  return made;
}

async function problem(response) {
  if (response.status === 401) {
    $("key-label").hidden = false;
    $("key").focus();
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return say("status", { status: response.status });
  }
}

async function findModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw new Error(await problem(response));
  model = (await response.json()).data[0].id;
  $("model").textContent = document.title = model;
}

// Yields the object of each event of a stream.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error(say("broken"));
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function userBox(number) {
  const box = element("div", "message user");
  const text = element("div", "text", messages[number].content);
  const actions = element("div", "actions");
  actions.append(
    button("copy", (from) => copy(messages[number].content, from)),
    button("edit", () => edit(number, box)),
  );
  box.append(element("div", "who", say("you")), text, actions);
  return box;
}

function answerBox(number) {
  const box = element("div", "message assistant");
  const details = element("details");
  const parts = {
    box, details, thought: element("div", "thought"), text: element("div", "text"), facts: element("div", "facts"),
    actions: element("div", "actions"),
  };
  details.append(element("summary", "", say("thought")), parts.thought);
  details.hidden = true;
  parts.actions.append(
    button("copy", (from) => copy(messages[number]?.content ?? parts.text.textContent, from)),
    button("regenerate", () => ask(messages.slice(0, number))),
  );
  box.append(element("div", "who", model ?? "Qwen3"), details, parts.text, parts.facts, parts.actions);
  return parts;
}

// Shows the conversation from its messages.
function showAll() {
  for (const node of [...$("log").children]) if (node !== $("hint")) node.remove();
  $("hint").hidden = messages.length > 0;
  messages.forEach((message, number) => {
    if (message.role === "user") return show(userBox(number));
    const parts = answerBox(number);
    renderMarkdown(parts.text, message.content);
    parts.thought.textContent = message.reasoning_content ?? "";
    parts.facts.textContent = message.facts ?? "";
    parts.details.hidden = !message.reasoning_content;
    show(parts.box);
  });
}

function edit(number, box) {
  if (running) return;
  const input = element("textarea", "", messages[number].content);
  const actions = element("div", "actions");
  input.ariaLabel = say("message");
  actions.append(
    button("save", () => input.value.trim() && ask([...messages.slice(0, number), { role: "user", content: input.value.trim() }])),
    button("cancel", showAll),
  );
  box.replaceChildren(input, actions);
  input.focus();
}

function settings() {
  const chosen = {};
  for (const name of NUMBERS) if ($(name).value !== "") chosen[name] = Number($(name).value);
  return chosen;
}

function remember() {
  if (!keepConversation(conversation, messages)) showError(say("full"));
}

// Answers `asked`, whose last message is a question, which becomes the conversation.
async function ask(asked) {
  if (running) return;
  const before = messages;
  messages = asked;
  showAll();
  running = new AbortController();
  $("send").textContent = say("stop");
  const parts = answerBox(asked.length);
  let content = "", thought = "", drawing = 0, note = "";
  const draw = () => {
    drawing = 0;
    renderMarkdown(parts.text, content);
    parts.thought.textContent = thought;
    parts.details.hidden = !thought;
    follow();
  };
  const finish = () => {
    const facts = parts.facts.textContent;
    messages = [...asked, { role: "assistant", content, facts, ...(thought && { reasoning_content: thought }) }];
    remember();
  };
  try {
    if (!model) await findModel();
    const system = $("system").value.trim();
    const sent = asked.map(({ role, content }) => ({ role, content }));
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), signal: running.signal,
      body: JSON.stringify({
        model, messages: system ? [{ role: "system", content: system }, ...sent] : sent, stream: true,
        stream_options: { include_usage: true }, enable_thinking: $("thinking").checked, ...settings(),
      }),
    });
    if (!response.ok) throw new Error(await problem(response));
    show(parts.box);
    const started = performance.now();
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      thought += choice?.delta.reasoning_content ?? "";
      content += choice?.delta.content ?? "";
      if (choice?.finish_reason === "length") note = ", " + say("cut");
      if (event.usage) {
        const speed = event.usage.completion_tokens / Math.max((performance.now() - started) / 1000, 0.001);
        parts.facts.textContent =
          say("facts", { tokens: event.usage.completion_tokens, speed: speed.toFixed(1) }) + note;
      }
      drawing ||= requestAnimationFrame(draw);
    }
    draw();
    finish();
  } catch (error) {
    if (error.name === "AbortError") {
      draw();
      parts.facts.textContent = say("stopped");
      if (content || thought) finish();
      else remember();
    } else {
      const question = asked.at(-1).content;
      messages = before.length > asked.length ? before : asked.slice(0, -1);
      showAll();
      show(userBoxOf(question));
      showError(error instanceof TypeError ? say("unreachable") : error.message);
      $("input").value ||= question;
    }
  } finally {
    cancelAnimationFrame(drawing);
    running = null;
    $("send").textContent = say("send");
    $("input").required = true;
  }
}

// A question that got no answer: shown, but no part of the conversation.
function userBoxOf(text) {
  const box = element("div", "message user");
  box.append(element("div", "who", say("you")), element("div", "text", text));
  return box;
}

function openConversation(id, its) {
  running?.abort();
  conversation = id;
  messages = its;
  showAll();
  $("history").close();
  $("input").focus();
}

function listConversations() {
  const rows = conversations().map(({ id, messages: its }) => {
    const row = element("div", id === conversation ? "row now" : "row");
    const open = element("button", "small", its[0]?.content.slice(0, 80) ?? "");
    open.type = "button";
    open.addEventListener("click", () => openConversation(id, its));
    row.append(open, button("remove", () => {
      keepConversation(id, []);
      if (id === conversation) newConversation();
      listConversations();
    }));
    return row;
  });
  $("list").replaceChildren(...(rows.length ? rows : [element("p", "facts", say("none"))]));
}

function newConversation() {
  running?.abort();
  conversation = crypto.randomUUID?.() ?? String(Date.now());
  messages = [];
  showAll();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const question = $("input").value.trim();
  if (!question) return;
  $("input").value = "";
  $("input").required = false; // Stop is the same button and needs no text
  ask([...messages, { role: "user", content: question }]);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("form").requestSubmit();
  }
});
$("clear").addEventListener("click", () => {
  newConversation();
  $("input").focus();
});
$("open-history").addEventListener("click", () => {
  listConversations();
  $("history").showModal();
});
$("open-settings").addEventListener("click", () => $("settings").showModal());
for (const close of document.querySelectorAll("dialog .close")) {
  close.addEventListener("click", () => close.closest("dialog").close());
}
function keepSettings() {
  const chosen = { thinking: $("thinking").checked };
  for (const name of [...NUMBERS, "system", "language"]) chosen[name] = $(name).value;
  keep("qwen3-settings", chosen);
}
function takeSettings(chosen) {
  $("thinking").checked = chosen.thinking ?? true;
  for (const name of [...NUMBERS, "system", "language"]) $(name).value = chosen[name] ?? "";
  speak($("language").value);
  showAll();
}
$("settings").addEventListener("change", keepSettings);
$("thinking").addEventListener("change", keepSettings);
$("language").addEventListener("change", () => {
  speak($("language").value);
  showAll();
});
$("reset").addEventListener("click", () => {
  takeSettings({});
  keepSettings();
});

const newest = conversations()[0];
if (newest) ({ id: conversation, messages } = newest);
takeSettings(kept("qwen3-settings", {}));
findModel().then(() => running || showAll()).catch((error) => {
  showError(error instanceof TypeError ? say("unreachable") : error.message);
});
