// Texts of tokens in pieces that can be shown: what is invisible, or would steer the page, gets a visible form.
// A piece is {kind, text}; kinds: "plain", "space" (a run of them), "newline", "tab", "escape".

const INVISIBLE = /[\p{C}\p{Zl}\p{Zp}\p{Zs}]/u;
const MARKS = { space: "·", newline: "↵", tab: "⇥" };

/** Pieces of characters. */
function piecesOf(text) {
  const pieces = [];
  for (const character of text) {
    const piece = pieceOf(character);
    const last = pieces[pieces.length - 1];
    if (last && last.kind === piece.kind && (piece.kind === "plain" || piece.kind === "space")) last.text += piece.text;
    else pieces.push(piece);
  }
  return pieces;
}

function pieceOf(character) {
  if (character === " ") return { kind: "space", text: " " };
  if (character === "\n") return { kind: "newline", text: "\n" };
  if (character === "\t") return { kind: "tab", text: "\t" };
  if (character === "\r") return { kind: "escape", text: "\\r" };
  if (!INVISIBLE.test(character)) return { kind: "plain", text: character };
  const code = character.codePointAt(0).toString(16);
  if (code.length <= 2) return { kind: "escape", text: `\\x${code.padStart(2, "0")}` };
  return { kind: "escape", text: code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\u{${code}}` };
}

function bytePiece(byte) {
  return { kind: "escape", text: `\\x${byte.toString(16).padStart(2, "0")}` };
}

/** Pieces of one token by itself: text, or bytes that are no whole characters. */
function tokenPieces(text) {
  if (typeof text === "string") return piecesOf(text);
  const reader = new ByteReader();
  return [...reader.push(text), ...reader.flush()];
}

/** Characters from bytes as they come; a character may begin in one token and end in another. */
class ByteReader {
  constructor() {
    this.waiting = [];
  }

  /** Pieces that more bytes complete. */
  push(bytes) {
    const pieces = [];
    for (const byte of bytes) {
      if (this.waiting.length && (byte & 0xc0) !== 0x80) pieces.push(...this.flush());
      this.waiting.push(byte);
      const wanted = byteCount(this.waiting[0]);
      if (this.waiting.length < wanted) continue;
      const character = wanted ? decode(this.waiting) : null;
      if (character === null) pieces.push(...this.flush());
      else {
        pieces.push(...piecesOf(character));
        this.waiting = [];
      }
    }
    return pieces;
  }

  /** Pieces of the bytes that are left: they are no character. */
  flush() {
    const pieces = this.waiting.map(bytePiece);
    this.waiting = [];
    return pieces;
  }
}

/** Bytes of the character that begins with this one; 0: none does. */
function byteCount(first) {
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

function decode(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

/** A token on one line, with marks in place of white space, cut to so many characters. */
function labelPieces(text, most = Infinity) {
  if (text === undefined) return [{ kind: "escape", text: "none" }];
  const pieces = tokenPieces(text).map(({ kind, text: part }) =>
    kind in MARKS ? { kind: "mark", text: repeated(MARKS[kind], part.length) } : { kind, text: part }
  );
  if (!pieces.length) return [{ kind: "escape", text: "empty" }];
  if (/^\p{M}/u.test(pieces[0].text)) pieces[0].text = `◌${pieces[0].text}`; // accents need something to stand on
  const cut = [];
  let left = most;
  for (const piece of pieces) {
    const characters = [...piece.text];
    if (characters.length > left) {
      cut.push({ kind: piece.kind, text: characters.slice(0, left).join("") }, { kind: "mark", text: "…" });
      return cut;
    }
    left -= characters.length;
    cut.push(piece);
  }
  return cut;
}

/** Indentation takes little room. */
function repeated(mark, times) {
  return times > 3 ? `${mark}×${times}` : mark.repeat(times);
}

/** The same as characters alone. */
function labelText(text, most) {
  return labelPieces(text, most).map((piece) => piece.text).join("");
}

/** A text of the trace that is no token, such as a name, as it can be shown. */
function visible(value) {
  const pieces = piecesOf(String(value));
  return pieces.map(({ kind, text }) => (kind === "newline" || kind === "tab" ? MARKS[kind] : text)).join("");
}
