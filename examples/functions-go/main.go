// A function worker in Go, from the generated stubs alone: it registers examples/greet-go, serves it, starts a run that
// calls it, and prints the run's result.
//
//	FLINT_ADDRESS=127.0.0.1:7470 FLINT_KEY=flint_… go run .
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	functions "example.com/flint-functions/gen/flint/functions/v1"
	runs "example.com/flint-functions/gen/flint/runs/v1"
	workflows "example.com/flint-functions/gen/flint/workflows/v1"
)

const parent = "namespaces/default"

const definition = `
document: {dsl: 1.0.3, namespace: default, name: greet-go, version: 1.0.0}
do:
  - greet: {call: 'examples/greet-go:1.0.0', with: {name: '${ .name }'}, timeout: {after: {minutes: 1}}}
`

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	address, key := os.Getenv("FLINT_ADDRESS"), os.Getenv("FLINT_KEY")
	if address == "" || key == "" {
		return fmt.Errorf("set FLINT_ADDRESS (host:port of a gateway) and FLINT_KEY (an API key)")
	}
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(authorized(key)))
	if err != nil {
		return err
	}
	defer connection.Close()

	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	worker := &Worker{
		Client:      functions.NewFunctionWorkerServiceClient(connection),
		Parent:      parent,
		Name:        "greet-go",
		Concurrency: 4,
		Declared: []*functions.FunctionDeclaration{{
			Name:             "examples/greet-go",
			Version:          "1.0.0",
			Description:      "Greets somebody by name.",
			InputSchema:      []byte(`{"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}`),
			OutputSchema:     []byte(`{"type": "object", "required": ["greeting"], "properties": {"greeting": {"type": "string"}}}`),
			HeartbeatTimeout: durationpb.New(15 * time.Second),
		}},
		Functions: map[string]Function{"examples/greet-go": greet},
	}
	ready := make(chan struct{}, 1)
	refused := make(chan error, 1)
	go func() {
		refused <- worker.Serve(ctx, func() {
			select {
			case ready <- struct{}{}:
			default:
			}
		})
	}()
	select {
	case <-ready:
	case err := <-refused:
		return err
	}
	return startAndPrint(ctx, connection)
}

func greet(ctx context.Context, task *functions.Task, progress func(float32, string)) ([]byte, error) {
	var arguments struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(task.Arguments, &arguments); err != nil {
		return nil, err
	}
	progress(50, "looking for kind words")
	return json.Marshal(map[string]string{"greeting": "Hello " + arguments.Name + ", from Go"})
}

func startAndPrint(ctx context.Context, connection *grpc.ClientConn) error {
	if _, err := workflows.NewWorkflowServiceClient(connection).ApplyWorkflow(ctx,
		&workflows.ApplyWorkflowRequest{Parent: parent, Source: definition}); err != nil {
		return err
	}
	client := runs.NewRunServiceClient(connection)
	started, err := client.StartRun(ctx,
		&runs.StartRunRequest{Parent: parent, WorkflowId: "greet-go", Input: []byte(`{"name": "Ada"}`)})
	if err != nil {
		return err
	}
	ended, err := client.AwaitRun(ctx,
		&runs.AwaitRunRequest{Name: started.Run.Name, Timeout: durationpb.New(time.Minute)})
	if err != nil {
		return err
	}
	if ended.Run.State != runs.Run_STATE_SUCCEEDED {
		return fmt.Errorf("%s: %s %s", ended.Run.Name, ended.Run.State, ended.Run.Error)
	}
	fmt.Println(string(ended.Run.Output))
	return nil
}
