#!/bin/sh
# Generates the stubs in gen/ from Flint's public contracts: nothing else of Flint is used here.
#
# Needs Go, and a protoc: `python3 -m grpc_tools.protoc` (package grpcio-tools) unless PROTOC names another one.
# GOOGLEAPIS is the folder that holds google/rpc/status.proto; the package googleapis-common-protos has it.
set -eu
cd "$(dirname "$0")"
PYTHON="${PYTHON:-python3}"
PROTOC="${PROTOC:-$PYTHON -m grpc_tools.protoc}"
PROTO="${PROTO:-../../proto}"
GOOGLEAPIS="${GOOGLEAPIS:-$("$PYTHON" -c 'import importlib.util as u, pathlib as p; print(p.Path(u.find_spec("google.rpc.status_pb2").origin).parents[2])')}"
tools="$PWD/.tools"
GOBIN="$tools" go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.10
GOBIN="$tools" go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1

files="flint/functions/v1/functions.proto flint/runs/v1/runs.proto flint/workflows/v1/workflows.proto"
maps=""
for file in $files; do
  package="example.com/flint-functions/gen/$(dirname "$file")"
  maps="$maps --go_opt=M$file=$package --go-grpc_opt=M$file=$package"
done
rm -rf gen
mkdir gen
# shellcheck disable=SC2086
$PROTOC -I"$PROTO" -I"$GOOGLEAPIS" \
  --plugin=protoc-gen-go="$tools/protoc-gen-go" --plugin=protoc-gen-go-grpc="$tools/protoc-gen-go-grpc" \
  --go_out=gen --go_opt=module=example.com/flint-functions/gen \
  --go-grpc_out=gen --go-grpc_opt=module=example.com/flint-functions/gen \
  $maps $files
