// The page: asks /search, /why and /map, and shows what comes back. What a stranger wrote goes in as text, never as markup.

const LANGUAGES = { en: "English", zh: "中文", es: "Español", ar: "العربية", hi: "हिन्दी", fr: "Français", ja: "日本語", de: "Deutsch" };
const RIGHT_TO_LEFT = new Set(["ar"]);
const EXAMPLES = ["cat", "fruta roja", "下雨", "سيارة", "संगीत", "ช้าง", "雪だるま", "Geburtstag"];
const LARGEST = 12 * 2 ** 20;
const HITS = 60;
const SHOWN = { all: {}, image: { modality: ["image", "image+text"] }, text: { modality: ["text", "image+text"] } };

const at = (id) => document.getElementById(id);
const made = (tag, into, set = {}) => {
  const element = Object.assign(document.createElement(tag), set);
  into.append(element);
  return element;
};

let words = {};
let asked = { text: "", like: null, image: null, name: "", tab: "all", balanced: true };
let hits = [];
let running = null;
let points = null;
let sees = true;
const pictures = new Map();

// ---- words ----------------------------------------------------------------------------------------------------------

async function speak(language) {
  words = await (await fetch(`/page/words.${language}.json`)).json();
  document.documentElement.lang = language;
  document.documentElement.dir = RIGHT_TO_LEFT.has(language) ? "rtl" : "ltr";
  for (const one of document.querySelectorAll("[data-word]")) one.textContent = words[one.dataset.word];
  for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", words[one.dataset.label]);
  for (const one of document.querySelectorAll("[data-placeholder]")) one.placeholder = words[one.dataset.placeholder];
  for (const one of document.querySelectorAll("[data-title]")) one.title = words[one.dataset.title];
  localStorage.setItem("language", language);
  show();
}

function say(text, bad = false, file = "") {
  at("message").replaceChildren();
  if (file) made("bdi", at("message"), { textContent: file });
  at("message").append(file ? ` · ${text}` : text);
  at("message").classList.toggle("bad", bad);
}

// ---- the server -----------------------------------------------------------------------------------------------------

class Refused extends Error {}

async function call(path, body, signal) {
  const key = sessionStorage.getItem("key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const sent = body ? { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } } : { headers };
  let answer;
  try {
    answer = await fetch(path, { ...sent, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(words.offline);
  }
  at("key").hidden = answer.status !== 401;
  if (answer.status === 401) throw new Refused(words.key_needed);
  if (answer.status === 429) throw new Refused(words.busy);
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw Object.assign(new Refused(told?.error?.message ?? `${answer.status}`), { status: answer.status, param: told?.error?.param });
  }
  return answer;
}

// An address is of one picture: an item that gets another one has another address.
function picture(address) {
  if (!pictures.has(address)) pictures.set(address, fetched(address));
  return pictures.get(address);
}

async function fetched(address) {
  try {
    return URL.createObjectURL(await (await call(address)).blob());
  } catch (error) {
    pictures.delete(address);
    throw error;
  }
}

const query = () => ({ ...(asked.text.trim() && { text: asked.text }), ...(asked.image && { image: asked.image }) });

async function search() {
  running?.abort();
  running = new AbortController();
  const body = asked.like ? { like: asked.like } : query();
  at("examples").hidden = Object.keys(body).length > 0;
  if (!Object.keys(body).length) {
    hits = [];
    say("");
    return show();
  }
  say(words.searching);
  const began = performance.now();
  try {
    const answer = await call("/search", { ...body, ...SHOWN[asked.tab], k: HITS, balanced: asked.balanced }, running.signal);
    const found = await answer.json();
    hits = found.hits;
    at("took").textContent = `· ${Math.round(performance.now() - began)} ms`;
    say(!hits.length ? words.nothing : found.good_match === false ? words.no_good_match : words.found.replace("{}", hits.length));
  } catch (error) {
    if (error.name === "AbortError") return;
    hits = [];
    if (body.image && sees && error.status === 400 && error.param === "input") drop();
    else say(error.message, true);
  }
  show();
}

// What is a picture is for the server to say: it reads some that browsers do not show, and the other way round.
function drop() {
  say(words.not_a_picture, true, asked.name);
  asked = { ...asked, image: null };
  history.replaceState({ image: null }, "");
  at("examples").hidden = Boolean(asked.text.trim());
  reflect();
}

// ---- what was asked, in the address ----------------------------------------------------------------------------------

let waiting = null; // what was typed a moment ago, and is not asked yet

function settle() {
  clearTimeout(waiting);
  const typed = waiting === null ? {} : { text: at("text").value, like: null };
  waiting = null;
  return typed;
}

function ask(change) {
  asked = { ...asked, ...settle(), ...change };
  const told = new URLSearchParams();
  if (asked.text) told.set("q", asked.text);
  if (asked.like) told.set("like", asked.like);
  if (asked.tab !== "all") told.set("tab", asked.tab);
  if (!asked.balanced) told.set("raw", "1");
  history.pushState({ image: asked.image, name: asked.name }, "", told.size ? `?${told}` : location.pathname);
  reflect();
  search();
}

function recall(state) {
  settle();
  const told = new URLSearchParams(location.search);
  const tab = told.get("tab") in SHOWN ? told.get("tab") : "all";
  asked = { text: told.get("q") ?? "", like: told.get("like"), image: state?.image ?? null, name: state?.name ?? "", tab, balanced: !told.has("raw") };
  reflect();
  search();
}

function reflect() {
  if (at("text").value !== asked.text) at("text").value = asked.text;
  reflectPicture();
  at("balanced").checked = asked.balanced;
  for (const tab of document.querySelectorAll("[role=tab]")) tab.setAttribute("aria-selected", String(tab.dataset.tab === asked.tab));
}

function reflectPicture() {
  const shown = at("picked");
  at("unpick").hidden = !asked.image;
  if (shown.getAttribute("src") === asked.image) return;
  shown.hidden = at("named").hidden = true; // until it is known which of the two can be shown
  shown.alt = at("named").textContent = asked.image ? asked.name : "";
  if (asked.image) shown.src = asked.image;
  else shown.removeAttribute("src");
}

// ---- hits ------------------------------------------------------------------------------------------------------------

function show() {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.querySelector("b").textContent = hits.length && tab.dataset.tab === asked.tab ? String(hits.length) : "";
  }
  const list = at("results");
  list.replaceChildren();
  for (const hit of hits) list.append(card(hit));
  draw();
}

function card(hit) {
  const item = Object.assign(document.createElement("li"), { className: "card", tabIndex: 0 });
  item.dataset.id = hit.id;
  if (hit.thumbnail) {
    const image = made("img", item, { alt: hit.label, loading: "lazy" });
    picture(hit.thumbnail).then((url) => (image.src = url), () => image.remove());
  }
  made("div", item, { className: "label", dir: "auto", textContent: hit.label });
  const told = made("div", item, { className: "told" });
  made("span", told, { textContent: words[`kind_${hit.modality}`] ?? hit.modality });
  made("span", told, { textContent: hit.score.toFixed(3), title: words.cosine });
  if (hit.relevance !== null) {
    made("meter", item, { min: 0, max: 1, low: 0.5, high: 0.9, optimum: 1, value: hit.relevance, title: `${words.relevance} ${hit.relevance.toFixed(2)}` })
      .setAttribute("aria-label", words.relevance);
  }
  const acts = made("div", item, { className: "acts" });
  made("button", acts, { type: "button", textContent: words.more, onclick: () => more(hit) });
  if (!asked.like) made("button", acts, { type: "button", textContent: words.why, onclick: () => why(hit) });
  return item;
}

const more = (hit) => ask({ like: hit.id, text: "", image: null });

async function why(hit) {
  say(words.searching);
  try {
    const told = await (await call("/why", { ...query(), id: hit.id })).json();
    at("why-picture").replaceChildren();
    at("why-text").replaceChildren();
    const said = [];
    if (told.picture) {
      made("img", at("why-picture"), { src: await picture(hit.thumbnail), alt: hit.label });
      heat(made("canvas", at("why-picture")), told.picture);
      said.push(`${words.strongest}: ${place(told.picture)}`);
    }
    if (told.text) {
      const most = Math.max(1e-6, ...told.text.map(([, change]) => Math.abs(change)));
      for (const [part, change] of told.text) {
        const span = made("span", at("why-text"), { textContent: part, title: change.toFixed(3) });
        span.style.backgroundColor = tint(change / most);
      }
      const best = told.text.reduce((a, b) => (b[1] > a[1] ? b : a));
      said.push(`${words.strongest}: ${best[0].trim()}`);
    }
    at("why-said").textContent = said.join(" · ");
    say("");
    at("why").showModal();
  } catch (error) {
    say(error.message, true);
  }
}

const tint = (part) => (part >= 0 ? `rgb(31 95 196 / ${(0.6 * part).toFixed(3)})` : `rgb(200 90 20 / ${(-0.6 * part).toFixed(3)})`);

function heat(canvas, grid) {
  canvas.width = canvas.height = grid.length;
  const most = Math.max(1e-6, ...grid.flat().map(Math.abs));
  const pen = canvas.getContext("2d");
  grid.forEach((row, r) => row.forEach((change, c) => {
    pen.fillStyle = tint(change / most);
    pen.fillRect(c, r, 1, 1);
  }));
}

function place(grid) {
  const flat = grid.flat();
  const best = flat.indexOf(Math.max(...flat));
  const third = (n) => Math.min(2, Math.floor((3 * n) / grid.length));
  const rows = [words.top, words.middle, words.bottom];
  const columns = [words.left, words.centre, words.right];
  return `${rows[third(Math.floor(best / grid.length))]}, ${columns[third(best % grid.length)]}`;
}

// ---- the map ---------------------------------------------------------------------------------------------------------

async function open(opened) {
  at("map").hidden = !opened;
  at("show-map").setAttribute("aria-expanded", String(opened));
  if (!opened) return;
  try {
    at("spot").textContent = words.map_about;
    points ??= (await (await call("/map")).json()).items;
    draw();
  } catch (error) {
    say(error.message, true);
  }
}

function laid(canvas) {
  const side = [canvas.clientWidth, canvas.clientHeight];
  return (point) => [((point.x + 1) / 2) * (side[0] - 24) + 12, ((1 - point.y) / 2) * (side[1] - 24) + 12];
}

function draw() {
  if (!points || at("map").hidden) return;
  const canvas = at("map").querySelector("canvas");
  const scale = devicePixelRatio || 1;
  [canvas.width, canvas.height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colours = getComputedStyle(document.documentElement);
  const colour = (kind) => colours.getPropertyValue(kind === "text" ? "--mark" : "--other");
  const found = new Map(hits.map((hit, rank) => [hit.id, rank]));
  const where = laid(canvas);
  for (const point of points) {
    const [x, y] = where(point);
    const hit = found.get(point.id);
    pen.globalAlpha = hits.length && hit === undefined ? 0.25 : 0.9;
    pen.fillStyle = colour(point.modality);
    pen.beginPath();
    if (point.modality === "text") pen.arc(x, y, hit === undefined ? 3 : 6, 0, 7);
    else pen.rect(x - (hit === undefined ? 3 : 6), y - (hit === undefined ? 3 : 6), hit === undefined ? 6 : 12, hit === undefined ? 6 : 12);
    pen.fill();
  }
}

function under(event) {
  const canvas = event.currentTarget;
  const box = canvas.getBoundingClientRect();
  const where = laid(canvas);
  let best = null;
  let least = 20 ** 2;
  for (const point of points ?? []) {
    const [x, y] = where(point);
    const far = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
    if (far < least) [best, least] = [point, far];
  }
  return best;
}

// ---- pictures of the user --------------------------------------------------------------------------------------------

function take(file) {
  if (!file) return;
  if (!file.type.startsWith("image/") || file.type === "image/svg+xml") return say(words.not_a_picture, true, file.name);
  if (file.size > LARGEST) return say(words.too_large, true, file.name);
  const reader = new FileReader();
  reader.onload = () => ask({ image: reader.result, name: file.name, like: null });
  reader.onerror = () => say(words.not_a_picture, true, file.name);
  reader.readAsDataURL(file);
}

// ---- what the user does ----------------------------------------------------------------------------------------------

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ text: at("text").value, like: null });
});
at("text").addEventListener("input", (event) => {
  settle();
  if (!event.isComposing) waiting = setTimeout(() => ask({}), 400);
});
at("text").addEventListener("compositionend", () => at("text").dispatchEvent(new InputEvent("input")));
at("file").addEventListener("change", () => {
  take(at("file").files[0]);
  at("file").value = "";
});
at("picked").addEventListener("load", () => (at("picked").hidden = !asked.image));
at("picked").addEventListener("error", () => (at("named").hidden = !asked.image));
at("unpick").addEventListener("click", () => ask({ image: null }));
at("balanced").addEventListener("change", () => ask({ balanced: at("balanced").checked }));
at("tabs").addEventListener("click", (event) => {
  const tab = event.target.closest("[role=tab]");
  if (tab) ask({ tab: tab.dataset.tab });
});
at("show-map").addEventListener("click", () => open(at("map").hidden));
at("language").addEventListener("change", () => speak(at("language").value));
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key-text").value);
  begin();
});
const canvas = at("map").querySelector("canvas");
canvas.addEventListener("mousemove", (event) => (at("spot").textContent = under(event)?.label ?? words.map_about));
canvas.addEventListener("click", (event) => {
  const point = under(event);
  if (point) more(point);
});
addEventListener("resize", draw);
addEventListener("popstate", (event) => recall(event.state));
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    take(file);
  }
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds what was asked
  at("results").focus();
});
addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey || event.ctrlKey || event.metaKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    at("text").focus();
  }
  const here = event.target.closest?.(".card");
  if (!here || event.target !== here) {
    if (event.key === "ArrowDown" && event.target === at("text")) at("results").querySelector(".card")?.focus();
    return;
  }
  const forward = document.documentElement.dir === "rtl" ? "ArrowLeft" : "ArrowRight";
  const back = forward === "ArrowRight" ? "ArrowLeft" : "ArrowRight";
  const hit = hits.find((one) => one.id === here.dataset.id);
  if (event.key === forward) here.nextElementSibling?.focus();
  else if (event.key === back) (here.previousElementSibling ?? at("text")).focus();
  else if (event.key === "ArrowDown") beside(here, 1)?.focus();
  else if (event.key === "ArrowUp") (beside(here, -1) ?? at("text")).focus();
  else if (event.key === "Enter") more(hit);
  else if (event.key === "w" && !asked.like) why(hit);
  else return;
  event.preventDefault();
});

function beside(card, rows) {
  const all = [...at("results").children];
  const across = all.filter((one) => one.offsetTop === all[0].offsetTop).length;
  return all[all.indexOf(card) + rows * across];
}

async function begin() {
  try {
    const told = await (await call("/v1/models")).json();
    sees = told.data[0].modalities.includes("image");
    at("model").textContent = `${told.data[0].id} · ${told.data[0].dimensions[0]}`;
    recall(history.state);
  } catch (error) {
    say(error.message, true);
  }
}

for (const [code, name] of Object.entries(LANGUAGES)) made("option", at("language"), { value: code, textContent: name });
for (const example of EXAMPLES) made("button", at("examples"), { type: "button", textContent: example, dir: "auto", onclick: () => ask({ text: example, like: null }) });
const known = [localStorage.getItem("language"), ...navigator.languages.map((one) => one.split("-")[0]), "en"].find((one) => one in LANGUAGES);
at("language").value = known;
await speak(known);
await begin();
