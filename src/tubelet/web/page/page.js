// The page. It asks the same API as everybody (/openapi.json), keeps what it knows in `state`, and draws from that.
const $ = (id) => document.getElementById(id);
const state = { models: [], video: null, turn: 0, hits: [], tags: new Map() };

// make("li", {class: "x"}, child, "text"): an element; text is only ever text.
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// What the API sends, or an Error with its one line. A full house is asked again when it says.
async function reach(address, options = {}, patience = 20) {
  const answer = await fetch(address, options).catch((error) => {
    throw options.signal?.aborted ? error : new Error("the server cannot be reached");
  });
  if (answer.status === 429 && patience) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(answer.headers.get("Retry-After")) || 1)));
    return reach(address, options, patience - 1);
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Error(error || `the server answered ${answer.status}`);
}
const ask = async (address, options) => (await reach(address, options)).json();

// The answer of an address that tells how far it is (server-sent events): progress(0 to 1) again and again.
// Not an EventSource, which cannot say why it was refused.
async function hear(address, progress, options) {
  const answer = await reach(address, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server ended before the answer was there");
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const [, kind, data] = block.match(/^event: (\w+)\ndata: (.*)$/s);
      const told = JSON.parse(data);
      if (kind === "done") return told;
      if (kind === "problem") throw new Error(told.error);
      progress(told.part);
    }
  }
}
const post = (address, value, options) => ask(address, { ...options, method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
const query = (values) => new URLSearchParams(values).toString();
const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
const percent = (p) => `${(100 * p).toFixed(1)} %`;

function say(place, text, bad = false) {
  place.textContent = text;
  place.classList.toggle("bad", bad);
}
// What stands where an answer will be; its `told` moves the bar.
function loading(text) {
  const bar = make("progress", { max: 1, "aria-label": text });
  const place = make("div", { class: "loading" }, make("p", { class: "quiet" }, text), bar);
  place.told = (part) => { bar.value = part; };
  return place;
}
const failed = (error) => make("p", { class: "bad" }, error.message);
const empty = (text) => make("p", { class: "empty" }, text);

// ---- a video -----------------------------------------------------------------------------------------------------

// fetch cannot tell how much it has sent; XMLHttpRequest can.
function send(file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/api/videos");
    request.upload.onprogress = (e) => e.lengthComputable && progress(e.loaded / e.total);
    request.onload = () => {
      let value = {};
      try { value = JSON.parse(request.responseText); } catch { /* no JSON: the status says it */ }
      request.status === 201 ? resolve(value) : reject(new Error(value.error || `the server answered ${request.status}`));
    };
    request.onerror = () => reject(new Error("the server cannot be reached, or has refused the file: is it too large?"));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file);
  });
}

async function take(file) {
  const place = $("upload-state"), bar = $("sent"), turn = ++state.turn; // of two files the later one wins
  say(place, `sending ${file.name} ...`);
  bar.hidden = false;
  try {
    const video = await send(file, (part) => { if (turn === state.turn) bar.value = part; });
    if (turn !== state.turn) return;
    state.video = video;
    say(place, `${file.name} is here`);
    show(file);
  } catch (error) {
    if (turn === state.turn) say(place, `${file.name}: ${error.message}`, true);
  }
  if (turn === state.turn) bar.hidden = true;
}

function show(file) {
  const { video } = state, player = $("player"), picture = $("picture");
  URL.revokeObjectURL(show.address);
  show.address = URL.createObjectURL(file);
  const still = file.type.startsWith("image/");
  picture.hidden = !still;
  player.hidden = still;
  if (still) picture.src = show.address;
  else player.src = show.address;
  $("about").textContent = `${video.seconds.toFixed(1)} s, ${video.frames} frames, ${video.width}x${video.height}, ${video.codec}`;
  $("like-this").disabled = !state.library;
  $("like-moment").disabled = !state.library || still;
  predict();
  timeline();
  rebuild();
  attend();
}

const classifiers = () => state.models.filter((model) => model.classes.length);

function seek(player, seconds) {
  player.currentTime = seconds;
  player.focus();
}

async function predict() {
  const { video } = state;
  const asked = classifiers();
  if (!asked.length) return $("answers").replaceChildren(empty("No model here was taught classes."));
  state.predicting?.abort(); // of the video before
  const { signal } = state.predicting = new AbortController();
  const waiting = asked.map((model) => loading(`${model.name} is looking ...`));
  $("answers").replaceChildren(...waiting);
  await Promise.all(asked.map(async (model, place) => {
    let card;
    try {
      const found = await hear(`/api/videos/${video.id}/prediction/events?${query({ model: model.name })}`, waiting[place].told, { signal });
      card = answer(video, model, found);
    } catch (error) {
      card = failed(error);
    }
    if (!signal.aborted) waiting[place].replaceWith(card);
  }));
}

function answer(video, model, found) {
  const bars = found.top.map(({ name, probability }) => make("li", {},
    make("div", { class: "row" }, make("span", {}, name), make("span", {}, percent(probability))),
    make("meter", { min: 0, max: 1, value: probability, "aria-label": `${name}: ${percent(probability)}` })));
  const different = [...new Map(found.seconds.map((times) => [times.join(), times])).values()]; // of a short video all are one
  const clips = different.map((times) => {
    const some = [0, 1, 2, 3].map((i) => times[Math.round(i * (times.length - 1) / 3)]);
    const words = `${clock(times[0])} to ${clock(times.at(-1))}`;
    return make("button", { class: "clip", type: "button", onclick: () => seek($("player"), times[0]) },
      make("img", { loading: "lazy", alt: `Frames looked at, ${words}`, src: `/api/videos/${video.id}/strip.png?${query({ seconds: some.join(",") })}` }),
      make("span", {}, words));
  });
  return make("div", { class: "answer" }, make("h3", {}, model.name), make("ol", { class: "bars" }, ...bars),
    ...found.warnings.map((text) => make("p", { class: "quiet" }, text)), make("h3", {}, "Frames it was told from"), ...clips);
}

// ---- its whole length --------------------------------------------------------------------------------------------

async function timeline() {
  const { video } = state, place = $("timeline");
  const model = chosen("timeline-model");
  state.watching?.abort();
  if (!model) return place.replaceChildren(empty("No model here was taught classes."));
  if (!video) return;
  const { signal } = state.watching = new AbortController();
  const waiting = loading(`${model.name} is watching ...`);
  place.replaceChildren(waiting);
  try {
    draw(place, video, await hear(`/api/videos/${video.id}/timeline/events?${query({ model: model.name })}`, waiting.told, { signal }));
  } catch (error) {
    if (!signal.aborted) place.replaceChildren(failed(error), make("button", { type: "button", onclick: timeline }, "Try again"));
  }
}

function draw(place, video, found) {
  if (!found.probabilities.length) return place.replaceChildren(empty("A picture has no length."));
  const most = found.classes.map((name, k) => ({ name, values: found.probabilities.map((row) => row[k]) }))
    .map((row) => ({ ...row, peak: Math.max(...row.values) })).sort((a, b) => b.peak - a.peak).slice(0, 6);
  const end = Math.max(video.seconds, found.seconds.at(-1) || 0) || 1;
  const rows = most.map(({ name, values, peak }) => {
    const x = (seconds) => (1000 * seconds / end).toFixed(1); // a step for every moment, from border to border
    const points = values.map((value, i) => `V${(30 - 30 * value).toFixed(2)}H${x(found.seconds[i + 1])}`);
    const at = (left, box) => Math.min(end, Math.max(0, (left - box.left) / box.width * end));
    const svg = make("svg", {
      viewBox: "0 0 1000 30", preserveAspectRatio: "none", tabindex: 0, role: "slider", "aria-label": `${name}, at most ${percent(peak)}; arrow keys move, Enter plays`,
      "aria-valuemin": 0, "aria-valuemax": end.toFixed(1), "aria-valuenow": 0,
      onclick: (e) => seek($("player"), at(e.clientX, svg.getBoundingClientRect())),
      onkeydown: (e) => {
        const player = $("player"), now = player.currentTime;
        const to = { ArrowLeft: now - end / 40, ArrowRight: now + end / 40, PageDown: now - end / 8, PageUp: now + end / 8, Home: 0, End: end }[e.key];
        if (to !== undefined) { e.preventDefault(); player.currentTime = Math.min(end, Math.max(0, to)); }
        if (e.key === "Enter") player.play();
      },
    }, make("path", { d: `M0,30${points.join("")}V30Z` }), make("line", { class: "now", x1: 0, x2: 0, y1: 0, y2: 30 }));
    return make("div", { class: "line" }, make("span", { title: name }, name), svg, make("span", { class: "most" }, percent(peak)));
  });
  place.replaceChildren(...rows, make("p", { class: "quiet" }, `0 to ${clock(end)}; the number is the highest point`));
}

function follow() {
  const end = state.video?.seconds || 1;
  for (const line of document.querySelectorAll("#timeline .now")) {
    const x = 1000 * $("player").currentTime / end;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    line.parentNode.setAttribute("aria-valuenow", $("player").currentTime.toFixed(1));
    line.parentNode.setAttribute("aria-valuetext", clock($("player").currentTime));
  }
}

// ---- hide and rebuild, where it looks -----------------------------------------------------------------------------

// A picture of the API in its place, or the line that says why there is none.
async function put(place, address, text) {
  place.asking?.abort(); // what was asked for before is wanted no more
  const asking = place.asking = new AbortController();
  place.replaceChildren(loading("drawing ..."));
  try {
    const answer = await reach(address, { signal: asking.signal });
    URL.revokeObjectURL(place.picture);
    place.picture = URL.createObjectURL(await answer.blob());
    const box = make("div", { class: "wide-picture", tabindex: 0, role: "group", "aria-label": text }, make("img", { src: place.picture, alt: text, onload: () => {
      if (box.scrollWidth > box.clientWidth) place.append(make("figcaption", { class: "quiet" }, "It goes on to the right: scroll it sideways."));
    } }));
    place.replaceChildren(box);
  } catch (error) {
    if (!asking.signal.aborted) place.replaceChildren(failed(error));
  }
}

function rebuild() {
  const model = chosen("rebuild-model");
  if (!model) return $("rebuilt").replaceChildren(empty("No model here rebuilds what is hidden: serve that of a pretraining run too."));
  if (!state.video) return;
  const values = { model: model.name, ratio: $("ratio").value / 100, mask: $("mask").value, seed: $("seed").value };
  put($("rebuilt"), `/api/videos/${state.video.id}/reconstruction.png?${query(values)}`,
    `The clip, the ${100 - $("ratio").value} % of it that ${model.name} was shown (${values.mask} mask), and what it made of that`);
}

function attend() {
  const model = chosen("looks-model");
  if (!model) return $("attended").replaceChildren(empty("No model here says where it looks."));
  if (state.video) put($("attended"), `/api/videos/${state.video.id}/attention.png?${query({ model: model.name })}`, `The clip, and where ${model.name} looks`);
}

// ---- the library ---------------------------------------------------------------------------------------------------

// For words, or for an upload: {video: its id, and perhaps start_seconds and end_seconds}.
async function search({ video, ...question }) {
  const place = $("search-state");
  state.searching?.abort();
  const { signal } = state.searching = new AbortController();
  say(place, "searching ...");
  const waiting = loading("looking at the video ...");
  $("hits").replaceChildren(...(video ? [make("li", {}, waiting)] : []));
  try {
    const found = video ? await hear(`/api/videos/${video}/search/events?${query(question)}`, waiting.told, { signal })
      : await post("/api/search", question, { signal });
    state.hits = found.hits;
    say(place, found.hits.length ? `${found.hits.length} moments, in ${found.seconds.toFixed(2)} s` : "nothing found: try other words");
    $("hits").replaceChildren(...found.hits.map((hit) => moment(hit, true)));
  } catch (error) {
    if (signal.aborted) return;
    $("hits").replaceChildren();
    say(place, error.message, true);
  }
}

function play(hit) {
  const player = $("moment"), address = `/api/library/${hit.key}/file`;
  player.hidden = false;
  if (player.getAttribute("src") !== address) {
    player.src = address;
    player.addEventListener("loadedmetadata", () => { player.currentTime = hit.start_seconds; }, { once: true });
  } else player.currentTime = hit.start_seconds;
  player.play().catch(() => { /* the browser wants a click on the player first */ });
  player.scrollIntoView({ block: "nearest" });
}

// A moment of the library: found, or `told` by a classifier that was taught.
function moment(hit, taggable, told = false) {
  const times = [0, 1, 2, 3].map((i) => hit.start_seconds + (hit.end_seconds - hit.start_seconds) * i / 3);
  const words = `${clock(hit.start_seconds)} to ${clock(hit.end_seconds)}`;
  const said = told ? percent(hit.score) : `similarity ${hit.score.toFixed(3)}`;
  const remark = [hit.label, hit.text, said].filter(Boolean).join(", ");
  const item = make("li", {});
  if (hit.gone) item.append(make("p", { class: "gone" }, `${hit.name} is not there any more`));
  else item.append(make("button", { class: "clip", type: "button", onclick: () => play(hit) },
    make("img", { loading: "lazy", alt: `${hit.name}, ${words}`, src: `/api/library/${hit.key}/strip.png?${query({ seconds: times.map((t) => t.toFixed(3)).join(",") })}` }),
    make("strong", {}, hit.name), " ", make("span", {}, `${words}; ${remark}`)));
  if (taggable) {
    const id = `${hit.key}@${hit.start_seconds}-${hit.end_seconds}`, box = make("input", { type: "text", "aria-label": `Tag of ${hit.name}, ${words}`, placeholder: "tag", value: state.tags.get(id)?.label ?? "" });
    box.addEventListener("input", () => {
      const label = box.value.trim();
      label ? state.tags.set(id, { key: hit.key, start_seconds: hit.start_seconds, end_seconds: hit.end_seconds, label }) : state.tags.delete(id);
      tagged();
    });
    item.append(make("div", { class: "tag" }, box));
  }
  return item;
}

function tagged() {
  const labels = new Set([...state.tags.values()].map((tag) => tag.label));
  $("teach").disabled = labels.size < 2;
  $("forget").disabled = !state.tags.size;
  say($("tag-state"), state.tags.size ? `${state.tags.size} moments tagged, ${[...labels].join(", ")}` : "Tag moments found above with two or more words; a classifier learns from them in seconds.");
}

async function teach() {
  say($("tag-state"), "learning ...");
  try {
    const found = await post("/api/heads", { tags: [...state.tags.values()] });
    say($("tag-state"), `learned ${found.classes.join(", ")} from ${state.tags.size} moments in ${found.seconds.toFixed(2)} s`);
    $("taught").replaceChildren(
      make("h4", {}, "The surest of the library"), make("ol", { class: "hits" }, ...found.surest.map((hit) => moment(hit, false, true))),
      make("h4", {}, "What it knows least: tag these next"), make("ol", { class: "hits" }, ...found.uncertain.map((hit) => moment(hit, true, true))));
  } catch (error) {
    say($("tag-state"), error.message, true);
  }
}

// The model that a <select> names, which is shown where there is a choice.
const chosen = (id) => state.models.find((model) => model.name === $(id).value);
function choices(id, models) {
  $(id).replaceChildren(...models.map((model) => make("option", { value: model.name }, model.name)));
  $(id).parentNode.hidden = models.length < 2;
}

// ---- the beginning -------------------------------------------------------------------------------------------------

function listen() {
  const drop = $("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (e) => {
      e.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && e.dataTransfer.files.length) take(e.dataTransfer.files[0]);
    });
  }
  $("file").addEventListener("change", (e) => e.target.files.length && take(e.target.files[0]));
  $("player").addEventListener("timeupdate", follow);
  $("player").addEventListener("seeking", follow);
  let waiting = 0;
  for (const [id, unit] of [["ratio", " %"], ["seed", ""]]) {
    $(id).addEventListener("input", () => {
      $(`${id}-shown`).textContent = $(id).value + unit;
      clearTimeout(waiting);
      waiting = setTimeout(rebuild, 150); // not for every pixel that a slider moves
    });
  }
  $("mask").addEventListener("change", rebuild);
  $("search").addEventListener("submit", (e) => {
    e.preventDefault();
    search({ words: $("words").value });
  });
  $("like-this").addEventListener("click", () => search({ video: state.video.id }));
  $("like-moment").addEventListener("click", () => {
    const now = $("player").currentTime;
    search({ video: state.video.id, start_seconds: Math.max(0, now - 1), end_seconds: now + 1 });
  });
  for (const [player, place] of [["player", "upload-state"], ["moment", "search-state"]]) {
    $(player).addEventListener("error", () => say($(place), "this browser cannot play this file; the answers are about it all the same", true));
  }
  $("timeline-model").addEventListener("change", timeline);
  $("rebuild-model").addEventListener("change", rebuild);
  $("looks-model").addEventListener("change", attend);
  $("teach").addEventListener("click", teach);
  $("forget").addEventListener("click", () => { state.tags.clear(); $("taught").replaceChildren(); tagged(); });
}

async function begin() {
  listen();
  try {
    const [models, masks, library] = await Promise.all([ask("/api/models"), ask("/api/masks"), ask("/api/library")]);
    state.models = models;
    state.library = library.windows > 0;
    $("mask").replaceChildren(...masks.map((name) => make("option", { value: name }, name.replaceAll("_", " "))));
    $("serving").textContent = models.map((m) => `${m.name} (${m.variant}${m.classes.length ? `, ${m.classes.length} classes` : ""})`).join(" · ");
    choices("timeline-model", classifiers());
    choices("rebuild-model", models.filter((model) => model.rebuilds));
    choices("looks-model", models.filter((model) => model.attends));
    say($("search-state"), state.library ? `${library.windows} moments of ${library.files} files`
      : "No library here: make one with `tubelet index DIR --model MODEL --out library` and serve it with `--library library`.");
    const wordless = state.library && !library.reads_words;
    $("words").disabled = $("find").disabled = !library.reads_words;
    if (wordless) $("words").placeholder = "the library's model reads no words: search by a video";
    rebuild();
    attend();
    timeline();
  } catch (error) {
    say($("serving"), error.message, true);
  }
}
begin();
