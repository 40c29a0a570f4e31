// A request of this page as something to paste: curl or Python. A key is named, never written out.

import { key } from "./api.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Arrays of bytes are for programs: somebody who pastes a request reads the same reply as JSON. */
const readable = (accept) => (accept === "application/msgpack" ? "application/json" : accept);

/** The request for a shell. */
export function asCurl({ method, path, body, accept }) {
  const parts = [`curl -sS -X ${method} ${quoted(location.origin + path)}`,
    `-H ${quoted(`accept: ${readable(accept)}`)}`];
  if (key.read()) parts.push('-H "authorization: Bearer $FOREFRAME_KEY"');
  if (body === undefined) return parts.join(" \\\n  ");
  parts.push("-H 'content-type: application/json'", `--data-binary @- <<'JSON'\n${JSON.stringify(body)}\nJSON`);
  return parts.join(" \\\n  ");
}

/** The request for Python, with httpx. */
export function asPython({ method, path, body, accept }) {
  const headers = [`"accept": ${JSON.stringify(readable(accept))}`];
  if (key.read()) headers.push('"authorization": f"Bearer {os.environ[\'FOREFRAME_KEY\']}"');
  if (body !== undefined) headers.push('"content-type": "application/json"');
  const shown = readable(accept) === "application/json" && method !== "DELETE" ? "reply.json()" : "reply.text";
  const lines = [...(key.read() ? ["import os", ""] : []), "import httpx", ""];
  if (body !== undefined) lines.push(`body = r'''${JSON.stringify(body).replaceAll("'", "\\u0027")}'''`);
  lines.push("reply = httpx.request(", `    ${JSON.stringify(method)},`,
      `    ${JSON.stringify(location.origin + path)},`,
    `    headers={${headers.join(", ")}},`, ...(body === undefined ? [] : ["    content=body,"]), "    timeout=60,",
        ")",
    "reply.raise_for_status()", `print(${shown})`);
  return `${lines.join("\n")}\n`;
}
