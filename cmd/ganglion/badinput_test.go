package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUsage: what is wrong with a command line or a configuration ends the
// command with 2, what is wrong with the machine with 1; either way the lines
// say where, what was found and what to do.
func TestUsage(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "devices"), 0o700); err != nil {
		t.Fatal(err)
	}
	const base = "state_dir: state\nidentity: {directory: {path: devices}}\nweb: {listen: \"\"}\nmqtt: {embedded: {listen: \"127.0.0.1:0\"}}\n"
	good := write("good.yaml", base)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().String()
	unknown := write("unknown.yaml", base+"hub:\n  dails_per_second: 5\n")
	many := write("many.yaml", base+"hub:\n  heartbeat: 5m\n  url: http://example.com\nlog: {level: loud}\n")
	nowhere := write("nowhere.yaml", "state_dir: state\nidentity:\n  directory:\n    path: devcies\n")
	none := write("none.yaml", "state_dir: state\n")
	missing := filepath.Join(dir, "missing.yaml")

	for _, c := range []struct {
		name    string
		environ []string
		args    []string
		code    int
		says    [][]string // each on one line of standard error
	}{
		{"no command", nil, nil, 2, [][]string{{"name a command", "ganglion help"}}},
		{"unknown command", nil, []string{"rnu"}, 2, [][]string{{`there is no command "rnu"`, "try ganglion help"}}},
		{"unknown flag", nil, []string{"run", "--confg", good}, 2, [][]string{{"unknown flag: --confg", "try ganglion run --help"}}},
		{"an argument too many", nil, []string{"version", "please"}, 2, [][]string{{`"please"`, "try ganglion version --help"}}},
		{"no --config", nil, []string{"run"}, 2, [][]string{{"--config is missing", "config.example.yaml"}}},
		{"check without --config", nil, []string{"check"}, 2, [][]string{{"--config is missing"}}},
		{"missing file", nil, []string{"run", "--config", missing}, 2, [][]string{{missing, "no such file", "--config"}}},
		{"a directory", nil, []string{"run", "--config", dir}, 2, [][]string{{dir, "not a regular file"}}},
		{"unknown key", nil, []string{"run", "--config", unknown}, 2, [][]string{{unknown + ":6:3:", "hub.dails_per_second", "did you mean dials_per_second?"}}},
		{"missing identity directory", nil, []string{"run", "--config", nowhere}, 2,
			[][]string{{nowhere + ":4:", "identity.directory.path", "no such file or directory", "devcies", "create it"}}},
		{"no identity", nil, []string{"run", "--config", none}, 2, [][]string{{none, "identity: nothing given", "directory: {path: devices}"}}},
		{"all mistakes at once", nil, []string{"check", "--config", many}, 2, [][]string{
			{many + ":6:", "hub.heartbeat", "5m", "1s to 2m"}, {many + ":7:", "hub.url", "http://example.com", "wss://HOST"},
			{many + ":8:", "log.level", "loud", "debug, info, warn, error"}}},
		{"unknown variable", []string{"GANGLION_HUB_ULR=x"}, []string{"check", "--config", good}, 2, [][]string{{"GANGLION_HUB_ULR"}}},
		{"state_dir is a file", []string{"GANGLION_STATE_DIR=" + good}, []string{"run", "--config", good}, 2, [][]string{{"state_dir", good, "not a directory"}}},
		{"state_dir below a file", []string{"GANGLION_STATE_DIR=" + good + "/state"}, []string{"run", "--config", good}, 2, [][]string{{"state_dir", "not a directory"}}},
		{"state_dir cannot be made", []string{"GANGLION_STATE_DIR=/proc/ganglion"}, []string{"run", "--config", good}, 1,
			[][]string{{"state_dir", "/proc/ganglion", "choose a directory this user may write"}}},
		{"broker port taken", []string{"GANGLION_MQTT_EMBEDDED_LISTEN=" + port}, []string{"run", "--config", good}, 1,
			[][]string{{"mqtt.embedded.listen", port, "taken by another program", "choose another port"}}},
		{"web port taken", []string{"GANGLION_WEB_LISTEN=" + port}, []string{"run", "--config", good}, 1,
			[][]string{{"web.listen", port, "taken by another program", "choose another port"}}},
		{"no such address", []string{"GANGLION_WEB_LISTEN=192.0.2.1:0"}, []string{"run", "--config", good}, 1,
			[][]string{{"web.listen", "192.0.2.1:0", "no address"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ganglion := start(t, c.environ, c.args...)
			if code := ganglion.exit(patience); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			lines := ganglion.log.lines()
			for _, want := range c.says {
				if !anyHolds(lines, want) {
					t.Errorf("no line with %q", want)
				}
			}
			if len(lines) != len(c.says) {
				t.Errorf("%d lines, want %d", len(lines), len(c.says))
			}
			for _, line := range lines {
				t.Log(line)
				if strings.Contains(line, "ready") {
					t.Error("and it said ready")
				}
			}
		})
	}
}

func anyHolds(lines, texts []string) bool {
	for _, line := range lines {
		if holds(line, texts) {
			return true
		}
	}
	return false
}

// TestCheck: a good configuration is said to be, and nothing is started or
// created for it.
func TestCheck(t *testing.T) {
	s := newSite(t)
	file := s.config()
	c := start(t, nil, "check", "--config", file)
	if code := c.exit(patience); code != 0 || c.out.String() != file+": ok\n" || c.log.String() != "" {
		t.Errorf("ended with %d, %q and %q", code, c.out, c.log)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "state")); err == nil {
		t.Error("check has made state_dir")
	}
}

// TestVersion: one line.
func TestVersion(t *testing.T) {
	c := start(t, nil, "version")
	if code := c.exit(patience); code != 0 || len(c.out.lines()) != 1 || !strings.HasPrefix(c.out.String(), "ganglion ") || c.log.String() != "" {
		t.Errorf("ended with %d, %q and %q", code, c.out, c.log)
	}
}
