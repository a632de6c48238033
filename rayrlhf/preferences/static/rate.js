// Keys and countdown of the raters' page; without this script its buttons do the same.
"use strict";

const verdicts = document.querySelector("form.verdicts");
const help = document.getElementById("help");
const clock = document.querySelector(".clock");
const end = performance.now() + 1000 * Number(clock.dataset.left);
let sent = false;

function openHelp() {
  if (!help.open) help.showModal();
}

// The key that is meant: by what it writes, else by where it lies (AZERTY's digits without shift; Cyrillic, Greek, Arabic).
function meant(event, known) {
  const key = event.key.toLowerCase();
  if (known.includes(key)) return key;
  const place = /^(?:Key|Digit|Numpad)([A-Z0-9])$/.exec(event.code || "");
  return place && !/^[a-z0-9]$/.test(key) ? place[1].toLowerCase() : key;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (help.open) {
    if (event.key === "?") help.close();
    return;
  }
  const buttons = [...document.querySelectorAll("[data-key]")];
  const key = meant(event, buttons.map((button) => button.dataset.key));
  const pressed = buttons.find((button) => button.dataset.key === key);
  if (pressed) {
    event.preventDefault();
    pressed.click();
  }
});

document.querySelector("[data-key='?']").addEventListener("click", (event) => {
  event.preventDefault();
  openHelp();
});

document.getElementById("close").addEventListener("click", (event) => {
  event.preventDefault();
  help.close();
});

verdicts.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});

window.addEventListener("pageshow", () => {
  sent = false;
});

function tick() {
  const left = Math.max(0, (end - performance.now()) / 1000);
  clock.querySelector("progress").value = left;
  clock.querySelector("span").textContent = left > 0 ? `${Math.ceil(left)} s` : "time is up";
  clock.classList.toggle("late", left === 0);
  if (left === 0) clearInterval(ticking);
}

const ticking = setInterval(tick, 250);
tick();
