// The server: requests with its token, and what it says where it refuses.

const KEY = "esm2-token";

/** Why there is no answer. `details` are those of records that are wrong. */
export class Refused extends Error {
  constructor(status, body) {
    super(sentence(status, body));
    this.status = status;
    this.details = body?.details ?? [];
  }
}

function sentence(status, body) {
  const said = body?.error?.message ?? body?.error;
  return said ? `${said[0].toUpperCase()}${said.slice(1)}.` : `The server answers ${status}.`;
}

/** Whether there is one. */
export function hasToken() {
  return sessionStorage.getItem(KEY) !== null;
}

/** Keeps the token for as long as this tab is open. */
export function keepToken(token) {
  sessionStorage.setItem(KEY, token);
}

/** The answer to a request. Raises Refused; TypeError where there is no server. */
export async function ask(path, { body, signal, as = "json" } = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => null));
  return answer[as]();
}
