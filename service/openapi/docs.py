"""The page that shows the OpenAPI document: Swagger UI, served by this service alone."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

# All from this origin and no inline script, so the page works with no internet and under a strict
# Content-Security-Policy.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Notes - Swagger UI</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="icon" href="docs/assets/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
# Swagger UI draws its icons from data: URLs, and sets style attributes.
POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline';"
    " frame-ancestors 'none'; base-uri 'none'"
)


async def home(request: Request) -> Response:
    return RedirectResponse(request.url_for("docs"))


async def swagger_ui(request: Request) -> Response:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


async def start(request: Request) -> Response:
    return Response(START, media_type="text/javascript")
