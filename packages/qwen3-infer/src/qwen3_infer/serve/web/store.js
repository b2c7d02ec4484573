"use strict";
// Conversations and settings, kept in this browser alone.
const MOST_KEPT = 100;

function kept(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

// Returns whether there was room.
function keep(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// Each: {id, messages: [{role, content, reasoning_content?, facts?}]}; the newest first.
function conversations() {
  const found = kept("qwen3-conversations", []);
  return Array.isArray(found) ? found.filter((each) => Array.isArray(each?.messages)) : [];
}

function keepConversation(id, messages) {
  const others = conversations().filter((each) => each.id !== id);
  const all = messages.length ? [{ id, messages }, ...others] : others;
  return keep("qwen3-conversations", all.slice(0, MOST_KEPT));
}
