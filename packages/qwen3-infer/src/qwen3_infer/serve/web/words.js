"use strict";
// What the page says, in its languages.
const WORDS = {
  en: {
    hint: "Ask something. Enter sends, Shift+Enter is a new line.", thinking: "think first", key: "API key",
    send: "Send", stop: "Stop", clear: "New conversation", history: "Conversations", settings: "Settings",
    system: "System message", temperature: "Temperature", top_p: "Top-p", top_k: "Top-k",
    max_tokens: "Longest answer, in tokens", seed: "Seed", language: "Language", reset: "Reset", close: "Close",
    copy: "Copy", copied: "Copied", edit: "Edit", save: "Send", cancel: "Cancel", regenerate: "Regenerate",
    remove: "Delete", you: "You", thought: "Thinking", stopped: "Stopped.", cut: "cut at the longest length",
    facts: "{tokens} tokens, {speed} a second", message: "Message", conversation: "Conversation",
    unreachable: "The server cannot be reached.", broken: "The connection was cut before the answer was whole.",
    status: "The server answered {status}.", error: "Error: ", unset: "the server's", none: "None yet.",
    full: "The browser keeps no more conversations; delete some.",
  },
  zh: {
    hint: "请输入问题。Enter 发送，Shift+Enter 换行。", thinking: "先思考", key: "API 密钥",
    send: "发送", stop: "停止", clear: "新对话", history: "对话记录", settings: "设置",
    system: "系统提示", temperature: "温度", top_p: "Top-p", top_k: "Top-k",
    max_tokens: "回答最长 token 数", seed: "随机种子", language: "语言", reset: "恢复默认", close: "关闭",
    copy: "复制", copied: "已复制", edit: "编辑", save: "发送", cancel: "取消", regenerate: "重新生成",
    remove: "删除", you: "你", thought: "思考过程", stopped: "已停止。", cut: "已达最大长度",
    facts: "{tokens} 个 token，每秒 {speed} 个", message: "消息", conversation: "对话",
    unreachable: "无法连接服务器。", broken: "回答未完整，连接已中断。",
    status: "服务器返回 {status}。", error: "错误：", unset: "服务器默认", none: "暂无。",
    full: "浏览器无法保存更多对话，请删除一些。",
  },
};
let language = "en";

function say(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

// Puts the words of a language into every element that names one.
function speak(chosen) {
  language = chosen || (navigator.language.startsWith("zh") ? "zh" : "en");
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-label]")) node.ariaLabel = say(node.dataset.label);
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = say(node.dataset.hint);
}
