"use strict";
// What every page has: data that stands in the page, and players that do not talk at once.
const report = {
  json(id) {
    return JSON.parse(document.getElementById(id).textContent);
  },
  bytes(id) {
    const coded = document.getElementById(id).textContent;
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(coded);
    const plain = atob(coded);
    const found = new Uint8Array(plain.length);
    for (let i = 0; i < plain.length; i++) found[i] = plain.charCodeAt(i);
    return found;
  },
  clock(seconds) {
    const hundredths = Math.round(seconds * 100);
    const rest = hundredths % 6000;
    const minutes = (hundredths - rest) / 6000;
    const two = (number) => String(number).padStart(2, "0");
    const tail = `${two(Math.floor(rest / 100))}.${two(rest % 100)}`;
    const hours = Math.floor(minutes / 60);
    return hours ? `${hours}:${two(minutes % 60)}:${tail}` : `${minutes}:${tail}`;
  },
  element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  },
  style(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  },
};

document.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio")) {
    if (other !== event.target) other.pause();
  }
}, true);

// The bar says which section is being read.
{
  const links = new Map();
  for (const link of document.querySelectorAll(".anchors a")) {
    links.set(link.getAttribute("href").slice(1), link);
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (link && entry.isIntersecting) {
        for (const one of links.values()) one.removeAttribute("aria-current");
        link.setAttribute("aria-current", "true");
      }
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("main > section")) watcher.observe(section);
}
