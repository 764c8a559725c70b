package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// asCommand, set in the environment, makes the test binary the command itself:
// exit codes, signals and standard error are then the real ones.
const asCommand = "TEST_BINARY_IS_GANGLION"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Exit(execute(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// patience is how long anything may take that takes moments.
const patience = 30 * time.Second

// A child is the command in a process of its own.
type child struct {
	t        *testing.T
	cmd      *exec.Cmd
	out, log *output // standard output and standard error
	ended    chan struct{}
}

// start runs the command with variables added to an environment that has none
// of the gateway's. What still runs when the test ends is killed.
func start(t *testing.T, environ []string, args ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(os.Args[0], args...), out: newOutput(), log: newOutput(), ended: make(chan struct{})}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "GANGLION_") && !strings.HasPrefix(v, "NOTIFY_SOCKET=") {
			c.cmd.Env = append(c.cmd.Env, v)
		}
	}
	c.cmd.Env = append(append(c.cmd.Env, asCommand+"=1"), environ...)
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.log
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		c.cmd.Wait() // its error is the exit code, which exit reports
	}()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.ended
		if t.Failed() {
			t.Logf("ganglion %s\n%s%s", strings.Join(args, " "), c.out.tail(), c.log.tail())
		}
	})
	return c
}

// until waits for a line of standard error that holds every text, and returns
// it.
func (c *child) until(texts ...string) string {
	c.t.Helper()
	return c.untilLine(c.log, func(line string) bool { return holds(line, texts) }, strings.Join(texts, " … "))
}

// twice is until for two lines.
func (c *child) twice(texts ...string) {
	c.t.Helper()
	first := c.until(texts...)
	c.untilLine(c.log, func(line string) bool { return line != first && holds(line, texts) }, "once more "+strings.Join(texts, " … "))
}

// untilLine is until for any output and condition; what says what it is.
func (c *child) untilLine(o *output, wanted func(string) bool, what string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	line, err := o.line(ctx, c.ended, wanted)
	if err != nil {
		c.t.Fatalf("no line with %s: %v", what, err)
	}
	return line
}

func holds(line string, texts []string) bool {
	for _, text := range texts {
		if !strings.Contains(line, text) {
			return false
		}
	}
	return true
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// exit waits for the end and returns the exit code; -1 is an end by a signal.
func (c *child) exit(within time.Duration) int {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(within):
		c.t.Fatalf("%s still runs after %s", strings.Join(c.cmd.Args[1:], " "), within)
	}
	return c.cmd.ProcessState.ExitCode()
}

// An output is what a child has written so far.
type output struct {
	mu      sync.Mutex // guards what follows
	text    bytes.Buffer
	changed chan struct{} // closed, and replaced, by Write
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

// Write implements [io.Writer].
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(b)
}

func (o *output) snapshot() (text string, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String(), o.changed
}

// String is all of it.
func (o *output) String() string { text, _ := o.snapshot(); return text }

// tail is enough of it to see what went wrong.
func (o *output) tail() string {
	const most = 16 << 10
	text := o.String()
	if len(text) > most {
		return "…" + text[len(text)-most:]
	}
	return text
}

// lines are the complete ones.
func (o *output) lines() []string {
	text := o.String()
	if text = text[:strings.LastIndexByte(text, '\n')+1]; text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// line returns the first wanted line, waiting for it until ctx or the writer
// has ended.
func (o *output) line(ctx context.Context, ended <-chan struct{}, wanted func(string) bool) (string, error) {
	for last := false; ; {
		_, changed := o.snapshot()
		for _, line := range o.lines() {
			if wanted(line) {
				return line, nil
			}
		}
		if last {
			return "", errors.New("the process has ended")
		}
		select {
		case <-changed:
		case <-ended:
			last = true
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
