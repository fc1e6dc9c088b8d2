// Temporal's side: `worker ADDRESS` executes, `client ADDRESS KIND` answers the harness's requests (harness.py).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

const (
	queue  = "bench"
	limit  = 5 * time.Minute
	worked = 1000 // tasks of a worker at a time
)

func epochMs() float64 { return float64(time.Now().UnixNano()) / 1e6 }

func step(ctx context.Context, n int) (float64, error) { return epochMs(), nil }

type task struct {
	Local    bool
	Steps    int
	Branches int
}

func once(ctx workflow.Context, local bool, n int) workflow.Future {
	if local {
		options := workflow.LocalActivityOptions{StartToCloseTimeout: limit}
		return workflow.ExecuteLocalActivity(workflow.WithLocalActivityOptions(ctx, options), step, n)
	}
	options := workflow.ActivityOptions{StartToCloseTimeout: limit}
	return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, options), step, n)
}

// Steps one after the other, or side by side; answers when the first one began.
func run(ctx workflow.Context, asked task) (float64, error) {
	var began, at float64
	if asked.Branches > 0 {
		futures := make([]workflow.Future, asked.Branches)
		for n := range futures {
			futures[n] = once(ctx, asked.Local, n)
		}
		for _, future := range futures {
			if err := future.Get(ctx, &at); err != nil {
				return 0, err
			}
		}
		return float64(len(futures)), nil
	}
	for n := 0; n < asked.Steps; n++ {
		if err := once(ctx, asked.Local, n).Get(ctx, &at); err != nil {
			return 0, err
		}
		if n == 0 {
			began = at
		}
	}
	return began, nil
}

type quiet struct{}

func (quiet) Debug(string, ...interface{}) {}
func (quiet) Info(string, ...interface{})  {}
func (quiet) Warn(string, ...interface{})  {}
func (quiet) Error(message string, values ...interface{}) {
	fmt.Fprintln(os.Stderr, append([]interface{}{message}, values...)...)
}

type request struct {
	What     string  `json:"what"`
	Steps    int     `json:"steps"`
	Runs     int     `json:"runs"`
	Callers  int     `json:"callers"`
	Branches int     `json:"branches"`
	LoadPerS float64 `json:"load_per_s"`
}

type driver struct {
	client client.Client
	local  bool
}

func (d driver) once(asked task) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	asked.Local = d.local
	started, err := d.client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: queue}, run, asked)
	if err != nil {
		return 0, err
	}
	var answer float64
	err = started.Get(ctx, &answer)
	return answer, err
}

func (d driver) singly(steps, runs, callers int) (float64, error) {
	var left atomic.Int64
	left.Store(int64(runs))
	var group sync.WaitGroup
	failures := make(chan error, callers)
	began := time.Now()
	for n := 0; n < callers; n++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for left.Add(-1) >= 0 {
				if _, err := d.once(task{Steps: steps}); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	group.Wait()
	rate := float64(runs) / time.Since(began).Seconds()
	select {
	case err := <-failures:
		return 0, err
	default:
		return rate, nil
	}
}

func timed(runs int, take func() (float64, error)) ([]float64, error) {
	times := make([]float64, 0, runs)
	for n := 0; n < runs; n++ {
		ms, err := take()
		if err != nil {
			return nil, err
		}
		times = append(times, ms)
	}
	return times, nil
}

// Runs started at a steady rate until `stop` is closed; returns when all have ended.
func (d driver) load(perS float64, stop <-chan struct{}) error {
	var group sync.WaitGroup
	var failed atomic.Value
	ticks := time.NewTicker(10 * time.Millisecond)
	defer ticks.Stop()
	began, begun := time.Now(), 0
	for {
		select {
		case <-stop:
			group.Wait()
			if err, ok := failed.Load().(error); ok {
				return fmt.Errorf("under load: %w", err)
			}
			return nil
		case <-ticks.C:
			for due := int(time.Since(began).Seconds() * perS); begun < due; begun++ {
				group.Add(1)
				go func() {
					defer group.Done()
					if _, err := d.once(task{Steps: 1}); err != nil {
						failed.CompareAndSwap(nil, err)
					}
				}()
			}
		}
	}
}

func (d driver) begin(runs int, perS float64) ([]float64, error) {
	stop, loaded := make(chan struct{}), make(chan error, 1)
	go func() { loaded <- d.load(perS, stop) }()
	if perS > 0 {
		time.Sleep(500 * time.Millisecond)
	}
	times, err := timed(runs, func() (float64, error) {
		began := epochMs()
		at, err := d.once(task{Steps: 1})
		return at - began, err
	})
	close(stop)
	if late := <-loaded; err == nil {
		err = late
	}
	return times, err
}

func (d driver) answer(asked request) (map[string]any, error) {
	elapsed := func(work task) func() (float64, error) {
		return func() (float64, error) {
			began := time.Now()
			_, err := d.once(work)
			return float64(time.Since(began).Microseconds()) / 1000, err
		}
	}
	var rate float64
	var times []float64
	var err error
	switch asked.What {
	case "singly":
		rate, err = d.singly(asked.Steps, asked.Runs, asked.Callers)
		return map[string]any{"rate": rate}, err
	case "batches":
		// There is no call that starts many: as many at once as Flint's batches have in flight.
		rate, err = d.singly(asked.Steps, asked.Runs, min(800, asked.Runs))
		return map[string]any{"rate": rate}, err
	case "alone":
		times, err = timed(asked.Runs, elapsed(task{Steps: asked.Steps}))
	case "fan":
		times, err = timed(1, elapsed(task{Branches: asked.Branches}))
	case "begin":
		times, err = d.begin(asked.Runs, asked.LoadPerS)
	default:
		err = fmt.Errorf("not measured")
	}
	return map[string]any{"times": times}, err
}

func main() {
	mode, address := os.Args[1], os.Args[2]
	connection, err := client.Dial(client.Options{HostPort: address, Logger: quiet{}})
	if err != nil {
		log.Fatalln(err)
	}
	defer connection.Close()
	if mode == "worker" {
		serving := worker.New(connection, queue, worker.Options{
			MaxConcurrentActivityExecutionSize:      worked,
			MaxConcurrentLocalActivityExecutionSize: worked,
			MaxConcurrentWorkflowTaskExecutionSize:  worked,
			MaxConcurrentActivityTaskPollers:        16,
			MaxConcurrentWorkflowTaskPollers:        16,
		})
		serving.RegisterWorkflow(run)
		serving.RegisterActivity(step)
		if err := serving.Run(worker.InterruptCh()); err != nil {
			log.Fatalln(err)
		}
		return
	}
	answering := driver{connection, os.Args[3] == "local"}
	answers := json.NewEncoder(os.Stdout)
	_ = answers.Encode(map[string]any{"ready": true})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked request
		answer, err := map[string]any(nil), json.Unmarshal(lines.Bytes(), &asked)
		if err == nil {
			answer, err = answering.answer(asked)
		}
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		if err := answers.Encode(answer); err != nil {
			log.Fatalln(err)
		}
	}
}
