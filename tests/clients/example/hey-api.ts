// A program for the FastAPI example, with functions made by @hey-api/openapi-ts.
import { createNoteNotesPost, readNotesNotesGet } from "./hey";
import type { CreateNoteNotesPostError, Note, NoteIn, ReadNotesNotesGetResponse } from "./hey";
import { client } from "./hey/client.gen";

declare const process: { argv: string[] };

client.setConfig({ baseUrl: process.argv[2] });

function message(error: CreateNoteNotesPostError): string {
  return error.detail![0].msg;
}

async function create(body: NoteIn): Promise<Note> {
  const { data, error } = await createNoteNotesPost({ body });
  if (error) {
    throw new Error(message(error));
  }
  return data!;
}

async function list(): Promise<Note[]> {
  const { data, error } = await readNotesNotesGet();
  if (error) {
    throw error;
  }
  const notes: ReadNotesNotesGetResponse = data!;
  return notes.map(({ id, text, completed }) => ({ id, text, completed }));
}

async function main() {
  const created = await create({ text: "a", completed: true });
  const refused = await create({ text: 7 as unknown as string, completed: true }).catch(
    (error: Error) => error.message,
  );
  console.log(JSON.stringify({ created, listed: await list(), refused }));
}

main();
