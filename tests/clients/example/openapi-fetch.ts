// A program for the FastAPI example, with types made by openapi-typescript.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

declare const process: { argv: string[] };

type Note = components["schemas"]["Note"];
type NoteIn = components["schemas"]["NoteIn"];
type Listing = paths["/notes/"]["get"]["responses"]["200"]["content"]["application/json"];

const client = createClient<paths>({ baseUrl: process.argv[2] });

async function create(note: NoteIn): Promise<Note> {
  const { data, error } = await client.POST("/notes/", { body: note });
  if (error) {
    throw new Error(error.detail![0].msg);
  }
  return data;
}

async function list(): Promise<Note[]> {
  const { data, error } = await client.GET("/notes/");
  if (error) {
    throw error;
  }
  const notes: Listing = data;
  return notes.map((note) => ({ id: note.id, text: note.text, completed: note.completed }));
}

async function main() {
  const created = await create({ text: "a", completed: true });
  const refused = await create({ text: 7 as unknown as string, completed: true }).catch(
    (error: Error) => error.message,
  );
  console.log(JSON.stringify({ created, listed: await list(), refused }));
}

main();
