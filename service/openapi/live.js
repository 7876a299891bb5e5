// Shows the notes as they change, by a browser's EventSource.

const list = document.getElementById("notes");
const state = document.getElementById("state");
// The item of each note in the list, by the note's id.
const items = new Map();
// Events that wait until the notes are listed; null while no listing is under way.
let early = null;
// The id of the last event, for the next EventSource.
let lastId = "";

function follow() {
  const after = lastId ? `?after=${lastId}` : "";
  const source = new EventSource(`../notes/changes${after}`);
  source.onopen = () => {
    state.textContent = "Connected";
  };
  source.onerror = () => {
    state.textContent = "Not connected";
    // It connects again by itself, except after an answer such as 503.
    if (source.readyState === EventSource.CLOSED) {
      pause().then(follow);
    }
  };
  for (const kind of ["start", "reset", "created", "changed", "deleted"]) {
    source.addEventListener(kind, (event) => {
      lastId = event.lastEventId;
      if (kind === "start" || kind === "reset") {
        showAll();
      } else if (early) {
        early.push(event);
      } else {
        apply(event);
      }
    });
  }
}

// Lists the notes, and applies what has changed meanwhile.
async function showAll() {
  const events = (early = []);
  let notes;
  while (!notes) {
    try {
      const answer = await fetch("../notes/");
      notes = answer.ok ? await answer.json() : null;
    } catch {
      // The service is away.
    }
    if (!notes) {
      await pause();
    }
  }
  if (events !== early) {
    return; // A later event has begun to list again.
  }
  items.clear();
  list.replaceChildren();
  notes.forEach(show);
  early = null;
  events.forEach(apply);
}

function apply(event) {
  const note = JSON.parse(event.data);
  if (event.type === "deleted") {
    items.get(note.id)?.remove();
    items.delete(note.id);
  } else {
    show(note);
  }
}

function show(note) {
  if (!items.has(note.id)) {
    items.set(note.id, document.createElement("li"));
    list.prepend(items.get(note.id));
  }
  items.get(note.id).textContent = `${note.id}: ${note.text}${note.completed ? " (completed)" : ""}`;
}

// Some seconds, so that not all clients come back at once.
function pause() {
  return new Promise((resolve) => setTimeout(resolve, 1000 + 4000 * Math.random()));
}

follow();
