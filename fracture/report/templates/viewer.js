"use strict";
window.addEventListener("error", (event) => {
  const place = document.getElementById("viewer-error");
  place.hidden = false;
  place.textContent = "The trace viewer failed: " + event.message;
});
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});

(() => {
  const data = JSON.parse(document.getElementById("trace-data").textContent);
  const at = (id) => document.getElementById(id);
  const out = at("viewer-out");
  const promptList = at("viewer-prompt");
  const variantList = at("viewer-variant");
  const search = at("viewer-search");
  const places = new Map(data.prompts.map((prompt, place) => [prompt.id, place]));
  let shown = data.prompts.map((_, place) => place);
  let current = 0;

  // Everything from the run becomes text, never markup.
  function make(tag, kind, ...children) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function fixed(value, digits) {
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(text) !== 0 ? "−" : "") + text;
  }

  function effectClass(value) {
    const [rose, ...ends] = data.classes;
    if (value < rose) return "effect-rose";
    const place = ends.findIndex((end) => value < end);
    return "effect-" + (place < 0 ? ends.length : place);
  }

  function chain(steps, effects, reason) {
    const list = make("ol", "chain");
    steps.forEach((step, place) => {
      const item = make("li", "effect-plain", make("span", "text", step));
      if (effects) {
        const value = effects[place];
        const known = value !== null && !reason;
        item.className = known ? effectClass(value) : "effect-none";
        item.append(make("span", "effect", known ? fixed(value, 2) : reason ? "—" : "no rule makes it wrong"));
      }
      list.append(item);
    });
    return list;
  }

  function judged(right) {
    return right === null ? "not judged" : make("span", right ? "right" : "wrong", right ? "right" : "wrong");
  }

  function effectTable(reader) {
    if (reader.no_routes) return make("p", "note", "Effects: " + reader.no_routes + ".");
    const head = make("tr", "");
    for (const name of ["", "total effect", "through the chain", "past the chain"]) {
      const cell = make("th", "", name);
      cell.scope = "col";
      head.append(cell);
    }
    const body = make("tbody", "");
    for (const [name, values] of [["by text", reader.text], ["inside", reader.inside]]) {
      const label = make("th", "", name);
      label.scope = "row";
      const row = make("tr", "", label);
      for (let place = 0; place < 3; place++) row.append(make("td", "", values ? fixed(values[place], 2) : "—"));
      body.append(row);
    }
    const caption = make("caption", "", "Effects on the answer's distribution");
    return make("div", "scroll", make("table", "", caption, make("thead", "", head), body));
  }

  function ownText(reader) {
    const own = reader.own;
    const box = make("div", "", make("h5", "", "What it wrote itself"));
    if (own.why) {
      box.append(make("p", "note", "Nothing that could be read: " + own.why + "."));
      return box;
    }
    if (own.same) box.append(make("p", "", "The same chain."));
    else box.append(chain(own.steps, null, null));
    const answer = own.answer === null ? "no answer" : own.answer;
    box.append(make("p", "", "Its answer: ", make("span", "text", answer), " (", judged(own.right), ")"));
    return box;
  }

  function column(prompt, place) {
    const reader = prompt.readers[place];
    const name = data.models[place];
    const reason = data.steps[name] || reader.no_effects;
    const box = make("div", "reader", make("h4", "", name));
    box.append(make("h5", "", "The " + data.whose + " chain" + (reader.effects ? ", with each step's effect" : "")));
    if (reason) box.append(make("p", "note", "No effects: " + reason + "."));
    box.append(chain(prompt.steps, reader.effects, reason));
    const answer = make("p", "", "Answer behind this chain: ");
    if (reader.why) answer.append("not scored: " + reader.why);
    else answer.append(judged(reader.right));
    if (reader.confidence !== null) answer.append(", with probability " + fixed(reader.confidence, 2));
    box.append(answer, effectTable(reader), ownText(reader));
    return box;
  }

  function draw() {
    const prompt = data.prompts[current];
    const variant = data.models.indexOf(variantList.value);
    const asked = make(
      "div",
      "asked",
      make("h3", "", "Prompt " + prompt.id),
      make("p", "text", prompt.question),
      make("p", "", make("strong", "", "Gold answer: "), make("span", "text", prompt.answer)),
    );
    if (prompt.partner) {
      const words = prompt.partner.tier === 3 ? "Another prompt as partner: " : "Counterfactual partner: ";
      const line = make("p", "note", words, make("span", "text", prompt.partner.question));
      line.append(" (answer ", make("span", "text", prompt.partner.answer), ")");
      asked.append(line);
    } else {
      asked.append(make("p", "note", "No counterfactual partner."));
    }
    const side = make("div", "side", column(prompt, 0));
    if (variant > 0) side.append(column(prompt, variant));
    out.replaceChildren(asked, side);
    promptList.value = prompt.id;
    const rank = shown.indexOf(current);
    at("viewer-previous").disabled = rank <= 0;
    at("viewer-next").disabled = rank < 0 || rank >= shown.length - 1;
    const count = shown.length === data.prompts.length ? "" : " that match";
    at("viewer-status").textContent = shown.length
      ? rank + 1 + " of " + shown.length + count
      : "no prompt's id matches";
  }

  function choose(place) {
    current = place;
    draw();
    const hash = new URLSearchParams({ prompt: data.prompts[place].id, variant: variantList.value });
    // Within a frame or an odd viewer the address cannot be set; the viewer works without.
    try { history.replaceState(null, "", "#" + hash); } catch (error) { return; }
  }

  function fill() {
    const wanted = search.value.trim().toLowerCase();
    shown = data.prompts.map((_, place) => place).filter((place) => data.prompts[place].id.toLowerCase().includes(wanted));
    const kept = shown.length ? shown : [current];
    promptList.replaceChildren(...kept.map((place) => new Option(data.prompts[place].id, data.prompts[place].id)));
    if (shown.length && !shown.includes(current)) choose(shown[0]);
    else draw();
  }

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (!asked.has("prompt") && !asked.has("variant")) return false;
    if (data.models.indexOf(asked.get("variant")) > 0) variantList.value = asked.get("variant");
    if (places.has(asked.get("prompt"))) {
      current = places.get(asked.get("prompt"));
      search.value = "";
    }
    return true;
  }

  if (!data.prompts.length) return;
  variantList.replaceChildren(...data.models.slice(1).map((name) => new Option(name, name)));
  const asked = fromAddress();
  fill();
  at("viewer").hidden = false;
  if (asked) at("traces").scrollIntoView();
  promptList.addEventListener("change", () => choose(places.get(promptList.value)));
  variantList.addEventListener("change", () => choose(current));
  search.addEventListener("input", fill);
  at("viewer-controls").addEventListener("submit", (event) => event.preventDefault());
  for (const [id, step] of [["viewer-previous", -1], ["viewer-next", 1]]) {
    at(id).addEventListener("click", () => choose(shown[shown.indexOf(current) + step]));
  }
  window.addEventListener("hashchange", () => { if (fromAddress()) fill(); });
})();
