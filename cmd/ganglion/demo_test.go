package main

import (
	"context"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"ganglion/internal/hubtest"
)

// startDemo runs the demonstration with a directory for temporary files of its
// own.
func startDemo(t *testing.T, args ...string) (c *child, tmp string) {
	t.Helper()
	tmp = t.TempDir()
	return start(t, []string{"TMPDIR=" + tmp}, append([]string{"demo"}, args...)...), tmp
}

// checkEmpty: nothing was left behind.
func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDemoOnce: the whole story is told, with where each thing was seen, and
// each place tells it in order.
func TestDemoOnce(t *testing.T) {
	t.Parallel()
	c, tmp := startDemo(t, "--once")
	if code := c.exit(time.Minute); code != 0 {
		t.Errorf("ended with %d", code)
	}
	checkEmpty(t, tmp)
	for _, place := range [][][]string{
		{
			{"NervesHub", "a stand-in listens on"},
			{"NervesHub", "soil-probe-1 device joined"},
			{"NervesHub", "soil-probe-1 update to 1.1.0 pushed"},
			{"NervesHub", "soil-probe-1 progress"},
			{"NervesHub", "soil-probe-1 runs 1.1.0, validated; 1 update recorded as successful"},
		}, {
			{"NervesHub", "an operator releases 1.1.0"},
			{"NervesHub", "soil-probe-1 update to 1.1.0 pushed"},
		}, {
			{"gateway", "ready: MQTT on"},
			{"device", "soil-probe-1", "running 1.0.0"},
			{"device", "soil-probe-1", "update to 1.1.0"},
			{"device", "soil-probe-1", "rebooting"},
			{"device", "soil-probe-1", "running 1.1.0"},
		}, {
			{"MQTT", "nh/soil-probe-1/up/hello", "1.0.0"},
			{"MQTT", "nh/soil-probe-1/down/update"},
			{"MQTT", "nh/soil-probe-1/up/progress"},
			{"MQTT", "nh/soil-probe-1/up/hello", "1.1.0"},
		},
	} {
		rest := c.out.lines()
		for _, want := range place {
			for len(rest) > 0 && !holds(rest[0], want) {
				rest = rest[1:]
			}
			if len(rest) == 0 {
				t.Fatalf("no %q after what comes before it in\n%s", want, strings.Join(c.out.lines(), "\n"))
			}
		}
	}
	if text := c.log.String(); text != "" {
		t.Errorf("on standard error: %s", text)
	}
}

// TestDemoStays: the demonstration stays until it is interrupted, during its
// story or after it.
func TestDemoStays(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"ready: MQTT on", "progress", "curl -X POST"} {
		t.Run(when, func(t *testing.T) {
			c, tmp := startDemo(t)
			c.untilLine(c.out, func(line string) bool { return strings.Contains(line, when) }, when)
			c.signal(syscall.SIGINT)
			if code := c.exit(patience); code != 0 {
				t.Errorf("SIGINT ended it with %d", code)
			}
			checkEmpty(t, tmp)
			if text := c.log.String(); text != "" {
				t.Errorf("on standard error: %s", text)
			}
		})
	}
}

// TestDemoFails: told once, what did not happen is the reason and the exit code
// is 1.
func TestDemoFails(t *testing.T) {
	c, tmp := startDemo(t, "--once")
	c.untilLine(c.out, func(line string) bool { return strings.Contains(line, "ready: MQTT on") }, "ready")
	c.signal(syscall.SIGTERM)
	if code := c.exit(patience); code != 1 || !strings.Contains(c.log.String(), "interrupted: NervesHub did not see") {
		t.Errorf("interrupted, it ended with %d and %q", code, c.log)
	}
	checkEmpty(t, tmp)

	c = start(t, []string{"TMPDIR=" + tmp + "/nowhere"}, "demo", "--once")
	if code := c.exit(patience); code != 1 || !strings.Contains(c.log.String(), "nowhere") {
		t.Errorf("without a directory it ended with %d and %q", code, c.log)
	}

	s := &stage{tell: newTeller(io.Discard), hub: hubtest.New(hubtest.Config{})} // nobody connects
	s.hub.AddDevice(demoID)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	err := s.story(ctx)
	if err == nil || !strings.Contains(err.Error(), `NervesHub did not see the device join: it has {`) {
		t.Errorf("without a device the story ended with %v", err)
	}
}
