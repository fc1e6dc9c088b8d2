#!/bin/sh
# Generates the stubs in gen/ from Flint's public contracts: nothing else of Flint is used here.
#
# Needs `npm install`, and a protoc: `python3 -m grpc_tools.protoc` (package grpcio-tools) unless PROTOC names another.
# GOOGLEAPIS is the folder that holds google/rpc/status.proto; the package googleapis-common-protos has it.
set -eu
cd "$(dirname "$0")"
PYTHON="${PYTHON:-python3}"
PROTOC="${PROTOC:-$PYTHON -m grpc_tools.protoc}"
PROTO="${PROTO:-../../proto}"
GOOGLEAPIS="${GOOGLEAPIS:-$("$PYTHON" -c 'import importlib.util as u, pathlib as p; print(p.Path(u.find_spec("google.rpc.status_pb2").origin).parents[2])')}"
rm -rf gen
mkdir gen
# shellcheck disable=SC2086
$PROTOC -I"$PROTO" -I"$GOOGLEAPIS" \
  --plugin=protoc-gen-ts_proto=node_modules/.bin/protoc-gen-ts_proto \
  --ts_proto_out=gen --ts_proto_opt=outputServices=grpc-js,esModuleInterop=true,importSuffix=.js,oneof=unions,env=node \
  flint/functions/v1/functions.proto flint/runs/v1/runs.proto flint/workflows/v1/workflows.proto
