// Reads msgpack, as replies hold it: maps, lists, text, numbers and bytes. Writes none; requests are JSON.

const text = new TextDecoder();

/** Read one value. Bytes are views of `buffer`; openpi's array maps become {dtype, shape, data}. Throws RangeError. */
export function unpack(buffer) {
  return new Reader(new Uint8Array(buffer)).value();
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  value() {
    const tag = this.number("Uint8", 1);
    if (tag < 0x80) return tag;
    if (tag < 0x90) return this.map(tag & 0x0f);
    if (tag < 0xa0) return this.list(tag & 0x0f);
    if (tag < 0xc0) return text.decode(this.take(tag & 0x1f));
    if (tag >= 0xe0) return tag - 0x100;
    return this.tagged(tag);
  }

  tagged(tag) {
    switch (tag) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.take(this.number("Uint8", 1));
      case 0xc5: return this.take(this.number("Uint16", 2));
      case 0xc6: return this.take(this.number("Uint32", 4));
      case 0xca: return this.number("Float32", 4);
      case 0xcb: return this.number("Float64", 8);
      case 0xcc: return this.number("Uint8", 1);
      case 0xcd: return this.number("Uint16", 2);
      case 0xce: return this.number("Uint32", 4);
      case 0xcf: return Number(this.number("BigUint64", 8));
      case 0xd0: return this.number("Int8", 1);
      case 0xd1: return this.number("Int16", 2);
      case 0xd2: return this.number("Int32", 4);
      case 0xd3: return Number(this.number("BigInt64", 8));
      case 0xd9: return text.decode(this.take(this.number("Uint8", 1)));
      case 0xda: return text.decode(this.take(this.number("Uint16", 2)));
      case 0xdb: return text.decode(this.take(this.number("Uint32", 4)));
      case 0xdc: return this.list(this.number("Uint16", 2));
      case 0xdd: return this.list(this.number("Uint32", 4));
      case 0xde: return this.map(this.number("Uint16", 2));
      case 0xdf: return this.map(this.number("Uint32", 4));
      default: throw new RangeError(`msgpack: a reply holds the unknown tag ${tag}`);
    }
  }

  number(kind, size) {
    const value = this.view[`get${kind}`](this.at);
    this.at += size;
    return value;
  }

  take(size) {
    if (this.at + size > this.bytes.length) throw new RangeError("msgpack: the reply ends too early");
    return this.bytes.subarray(this.at, (this.at += size));
  }

  list(count) {
    return Array.from({ length: count }, () => this.value());
  }

  map(count) {
    const found = {};
    for (let index = 0; index < count; index += 1) {
      const key = this.value();
      found[key instanceof Uint8Array ? text.decode(key) : key] = this.value();
    }
    if (!found.__ndarray__) return found;
    const { dtype, shape, data } = found;
    return { dtype: dtype instanceof Uint8Array ? text.decode(dtype) : dtype, shape, data };
  }
}
