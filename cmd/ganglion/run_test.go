package main

import (
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHangup: SIGHUP has the configuration checked again. Whatever comes of it,
// no device is disconnected.
func TestHangup(t *testing.T) {
	s := newSite(t, "probe-1")
	g := s.run()
	s.switchOn(s.device(g, "probe-1").Run)
	s.until("probe-1", "a join", patience, isJoined)

	g.signal(syscall.SIGHUP)
	g.until("level=INFO", "SIGHUP", "certificates", "every connect", "need a restart")
	file := s.write("ganglion.yaml", "hub:\n  heartbeet: 5s\nlog: {level: loud}\n")
	g.signal(syscall.SIGHUP)
	g.until("level=ERROR", "SIGHUP", file+":2:3: hub.heartbeet", "did you mean heartbeat?")
	g.until("level=ERROR", "SIGHUP", file+":3:", "log.level")
	s.config()
	g.signal(syscall.SIGHUP)
	g.twice("level=INFO", "SIGHUP")

	if n := len(s.gate.accepted()); n != 1 {
		t.Errorf("%d connections to the hub, want the first alone", n)
	}
	if joins, clients := g.metric("ganglion_joins_total"), g.metric("ganglion_mqtt_clients"); joins != 1 || clients != 1 {
		t.Errorf("%v joins, %v MQTT clients", joins, clients)
	}
	g.signal(syscall.SIGTERM)
	if code := g.exit(patience); code != 0 {
		t.Errorf("ended with %d", code)
	}
}

// TestNotify: systemd is told when the gateway is ready, and that it stops
// while it still does.
func TestNotify(t *testing.T) {
	s := newSite(t, "probe-1")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(s.dir, "notify"), Net: "unixgram"})
	s.must(err)
	defer manager.Close()
	s.must(manager.SetReadDeadline(time.Now().Add(patience)))
	expect := func(want string) {
		t.Helper()
		b := make([]byte, 256)
		n, err := manager.Read(b)
		if err != nil || !strings.Contains(string(b[:n]), want) {
			t.Fatalf("notified %q, %v; want %s", b[:n], err, want)
		}
	}
	g := s.run("NOTIFY_SOCKET=" + filepath.Join(s.dir, "notify"))
	expect("READY=1")
	s.switchOn(s.device(g, "probe-1").Run)
	s.until("probe-1", "a join", patience, isJoined)
	g.signal(syscall.SIGTERM)
	expect("STOPPING=1")
	if code := g.exit(patience); code != 0 {
		t.Errorf("ended with %d", code)
	}
}

// TestStateUnwritable: a directory that takes no file, as on a full disk, is
// told of and keeps nobody from being served.
func TestStateUnwritable(t *testing.T) {
	g := newSite(t).run("GANGLION_STATE_DIR=/proc/self", "GANGLION_LOG_FORMAT=text")
	g.until("level=WARN", "state_dir", "cannot be kept", "free space", "/proc/self/boot")
	if status, body := g.get("/readyz"); status != 200 {
		t.Errorf("readyz: %d %s", status, body)
	}
}
