package main

import (
	"context"
	"errors"
	"log"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	functions "example.com/flint-functions/gen/flint/functions/v1"
	runs "example.com/flint-functions/gen/flint/runs/v1"
)

// Function executes one task; its context ends when the task is not wanted any more.
type Function func(ctx context.Context, task *functions.Task, progress func(percent float32, message string)) ([]byte, error)

// Worker serves functions over one stream, and opens another one whenever it breaks. Tasks outlive streams.
type Worker struct {
	Client      functions.FunctionWorkerServiceClient
	Parent      string
	Name        string
	Concurrency int32
	Declared    []*functions.FunctionDeclaration
	Functions   map[string]Function // by name

	mutex  sync.Mutex
	tasks  map[string]*running
	stream functions.FunctionWorkerService_ConnectClient // nil while there is none
}

type running struct {
	cancel  context.CancelFunc
	outcome *functions.ConnectRequest // nil while the function runs
}

// Serve runs until its context ends, or the gateway refuses the worker. `welcomed` is called after every connection.
func (w *Worker) Serve(ctx context.Context, welcomed func()) error {
	w.tasks = map[string]*running{}
	pause := 50 * time.Millisecond
	for {
		err := w.connect(ctx, func() { pause = 50 * time.Millisecond; welcomed() })
		if ctx.Err() != nil {
			return nil
		}
		switch status.Code(err) {
		case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated:
			return err
		}
		log.Printf("the stream ended (%v); connecting again", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

func (w *Worker) connect(ctx context.Context, welcomed func()) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	stream, err := w.Client.Connect(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&functions.ConnectRequest{Message: &functions.ConnectRequest_Hello{Hello: w.hello()}}); err != nil {
		_, err = stream.Recv() // the stream's status tells why
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetWelcome() == nil {
		return errors.New("the first message was no welcome")
	}
	w.open(stream)
	defer w.close()
	go w.repeat(ctx)
	welcomed()
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		switch message := response.Message.(type) {
		case *functions.ConnectResponse_Task:
			w.begin(message.Task)
		case *functions.ConnectResponse_Ack:
			w.forget(message.Ack.Token)
		case *functions.ConnectResponse_Cancel:
			w.forget(message.Cancel.Token)
		case *functions.ConnectResponse_Drain:
			return errors.New("the gateway is going to stop")
		}
	}
}

// hello lists the tasks that are still being executed; those with an outcome are settled by saying it again.
func (w *Worker) hello() *functions.Hello {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	hello := &functions.Hello{Parent: w.Parent, Worker: w.Name, Functions: w.Declared}
	for token, task := range w.tasks {
		if task.outcome == nil {
			hello.Tasks = append(hello.Tasks, token)
		}
	}
	return hello
}

func (w *Worker) open(stream functions.FunctionWorkerService_ConnectClient) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.stream = stream
	for _, task := range w.tasks {
		if task.outcome != nil {
			w.send(task.outcome)
		}
	}
	w.credit(w.Concurrency - int32(len(w.tasks)))
}

// repeat says outcomes again that nobody acknowledged: while there is no answer, nobody may have them.
func (w *Worker) repeat(ctx context.Context) {
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		w.mutex.Lock()
		for _, task := range w.tasks {
			if task.outcome != nil {
				w.send(task.outcome)
			}
		}
		w.mutex.Unlock()
	}
}

func (w *Worker) close() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.stream = nil
}

// send needs the mutex. What cannot be sent now is said again on the next stream.
func (w *Worker) send(request *functions.ConnectRequest) {
	if w.stream != nil {
		_ = w.stream.Send(request) // an error ends the stream, and Recv reports it
	}
}

func (w *Worker) credit(tasks int32) {
	if tasks > 0 {
		w.send(&functions.ConnectRequest{Message: &functions.ConnectRequest_Credit{Credit: &functions.Credit{Tasks: tasks}}})
	}
}

func (w *Worker) begin(task *functions.Task) {
	deadline := time.Now().Add(24 * time.Hour)
	if task.Deadline != nil {
		deadline = task.Deadline.AsTime()
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	w.mutex.Lock()
	w.tasks[task.Token] = &running{cancel: cancel}
	w.mutex.Unlock()
	go w.execute(ctx, task)
}

func (w *Worker) execute(ctx context.Context, task *functions.Task) {
	done := make(chan struct{})
	go w.beat(ctx, task, done)
	progress := func(percent float32, message string) {
		w.heartbeat(&functions.Heartbeat{Token: task.Token, ProgressPercent: &percent, Message: message})
	}
	output, err := w.Functions[task.Function](ctx, task, progress)
	close(done)
	outcome := &functions.ConnectRequest{Message: &functions.ConnectRequest_Complete{
		Complete: &functions.Complete{Token: task.Token, Output: output},
	}}
	if err != nil {
		outcome = &functions.ConnectRequest{Message: &functions.ConnectRequest_Fail{Fail: &functions.Fail{
			Token:      task.Token,
			Problem:    &runs.Problem{Title: "The function failed", Detail: err.Error()},
			Retryable:  true,
			RetryAfter: durationpb.New(time.Second),
		}}}
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if known, ok := w.tasks[task.Token]; ok {
		known.outcome = outcome
		w.send(outcome)
	}
}

func (w *Worker) beat(ctx context.Context, task *functions.Task, done <-chan struct{}) {
	ticker := time.NewTicker(task.HeartbeatInterval.AsDuration())
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case <-ticker.C:
			w.heartbeat(&functions.Heartbeat{Token: task.Token})
		}
	}
}

func (w *Worker) heartbeat(beat *functions.Heartbeat) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.send(&functions.ConnectRequest{Message: &functions.ConnectRequest_Heartbeat{Heartbeat: beat}})
}

// forget frees the task's slot: its outcome is settled, or nobody wants it.
func (w *Worker) forget(token string) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if task, ok := w.tasks[token]; ok {
		task.cancel()
		delete(w.tasks, token)
		w.credit(1)
	}
}

// authorized shows the key with every call.
type authorized string

func (key authorized) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(key)}, nil
}

func (authorized) RequireTransportSecurity() bool { return false }
