"use strict";
// Puts plotly's figures in the place of the static pictures, each when it comes into sight.

const dark = matchMedia("(prefers-color-scheme: dark)");
let figures, words;

async function unpacked(id) {
  const bytes = decoded(document.getElementById(id).textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function decoded(letters) {
  const order = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
  const digit = new Uint8Array(128);
  [...order].forEach((letter, i) => (digit[letter.charCodeAt(0)] = i));
  const length = Math.floor((letters.length * 4) / 5);
  const whole = letters.padEnd(Math.ceil(letters.length / 5) * 5, "~");
  const words = new DataView(new ArrayBuffer((whole.length / 5) * 4));
  for (let i = 0, at = 0; i < whole.length; i += 5, at += 4) {
    let word = 0;
    for (let k = i; k < i + 5; k += 1) word = word * 85 + digit[whole.charCodeAt(k)];
    words.setUint32(at, word);
  }
  return new Uint8Array(words.buffer, 0, length);
}

function run(source) {
  const script = document.createElement("script");
  script.textContent = source;
  document.head.append(script);
}

function chosen(section) {
  const variants = figures[section.dataset.figure];
  const selects = [...section.querySelectorAll("select")];
  return variants.find((v) => selects.every((s) => v.choice[s.name] === s.value)) ?? variants[0];
}

function layoutOf(section, variant) {
  const layout = structuredClone(variant.layout);
  layout.font.color = getComputedStyle(section).color;
  if (section.querySelector("input[name=own]")?.checked) {
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      Object.assign(layout[key], { range: undefined, autorange: true, matches: undefined });
      layout[key].showticklabels = true;
    }
  }
  return layout;
}

function spelled(text) {
  return Array.isArray(text) ? text.map(spelled) : words[text];
}

function dataOf(variant) {
  return structuredClone(variant.data).map((trace) =>
    "text" in trace ? Object.assign(trace, { text: spelled(trace.text) }) : trace,
  );
}

function draw(section) {
  const variant = chosen(section);
  const live = section.querySelector(".live");
  live.style.minHeight = `${variant.layout.height}px`;
  live.setAttribute("aria-label", variant.alt);
  section.querySelector("figcaption").textContent = variant.notes.join(" ");
  Plotly.react(live, dataOf(variant), layoutOf(section, variant), CONFIG);
  section.classList.add("drawn");
}

function control(name, input) {
  const label = document.createElement("label");
  label.append(`${name} `, input);
  return label;
}

function choices(section) {
  const variants = figures[section.dataset.figure];
  const controls = section.querySelector(".controls");
  for (const name of Object.keys(variants[0].choice)) {
    const values = [...new Set(variants.map((variant) => variant.choice[name]))];
    if (values.length < 2) continue;
    const select = document.createElement("select");
    select.name = name;
    select.append(...values.map((value) => new Option(value, value)));
    controls.append(control(name, select));
  }
  if (section.dataset.figure === "scatter") {
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", name: "own" });
    controls.append(control("each run has its own axes", box));
  }
  controls.addEventListener("change", () => draw(section));
}

async function main() {
  const sections = [...document.querySelectorAll("[data-figure]")];
  if (!sections.length || !("DecompressionStream" in window)) return;
  await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
  const text = await unpacked("payload");
  const end = text.indexOf("\n");
  ({ figures, words } = JSON.parse(text.slice(0, end)));
  run(text.slice(end + 1));
  sections.forEach(choices);
  const watch = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watch.unobserve(target);
        setTimeout(() => draw(target)); // one at a time, so that the first is soon seen
      }
    },
    { rootMargin: "300px" },
  );
  sections.forEach((section) => watch.observe(section));
  dark.addEventListener("change", () =>
    document.querySelectorAll(".drawn").forEach((section) => draw(section)),
  );
}

const CONFIG = JSON.parse(document.getElementById("config").textContent);
main();
