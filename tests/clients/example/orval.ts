// A program for the FastAPI example, with functions made by orval.
import { createNoteNotesPost, readNotesNotesGet } from "./generated";
import type { Note, NoteIn } from "./generated";

declare const process: { argv: string[] };

// What orval makes asks for paths.
const send = globalThis.fetch;
globalThis.fetch = (path, init) => send(process.argv[2] + path, init);

async function create(note: NoteIn): Promise<Note> {
  const response = await createNoteNotesPost(note);
  if (response.status === 200) {
    return response.data;
  }
  throw new Error(response.data.detail![0].msg);
}

async function list(): Promise<Note[]> {
  const response = await readNotesNotesGet();
  if (response.status === 200) {
    return response.data.map(({ id, text, completed }) => ({ id, text, completed }));
  }
  throw response;
}

async function main() {
  const created = await create({ text: "a", completed: true });
  const refused = await create({ text: 7 as unknown as string, completed: true }).catch(
    (error: Error) => error.message,
  );
  console.log(JSON.stringify({ created, listed: await list(), refused }));
}

main();
