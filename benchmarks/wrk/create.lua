-- Every request creates a note.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"text": "Note 0: buy milk, eggs and bread", "completed": false}'
