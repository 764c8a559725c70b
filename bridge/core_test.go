package bridge

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ganglion/mqtt"
	"ganglion/phoenix"
)

var rewrite = flag.Bool("update", false, "rewrite testdata/*.txt with what the core does")

// TestTranscripts replays testdata/*.txt. An unindented line happens to the
// core; the indented lines after it are everything the core did about it.
//
//	dev NAME PAYLOAD   the device published       online, offline   its presence
//	hub FRAME          NervesHub said             link up, link down
//	joined             it accepted the last join  turned_away RESPONSE
//	crashed EVENT PAYLOAD                         the last join's channel died
//	+DURATION          time passes, to every deadline on the way
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := newReplay().play(t, string(script))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(script) {
				t.Errorf("got\n%s\nwant\n%s", got, script)
			}
		})
	}
}

// A replay is a core and what it did.
type replay struct {
	c    *core
	out  strings.Builder
	join string // the last join_ref
}

func newReplay() *replay {
	class := Class{Name: "default", Linger: 30 * time.Second, CommandTTL: time.Minute, Reschedule: time.Hour}
	return &replay{c: &core{device: "d", class: class, beat: 30 * time.Second, phase: 30 * time.Second, now: time.Unix(1000, 0)}}
}

func (r *replay) play(t *testing.T, script string) string {
	t.Helper()
	for line := range strings.Lines(script) {
		if strings.HasPrefix(line, "  ") {
			continue
		}
		r.out.WriteString(line)
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		var err error
		switch {
		case verb == "online":
			r.c.online(mqtt.Client{Version: 4})
		case verb == "offline":
			r.c.offline()
		case verb == "link" && rest == "up":
			r.c.linkUp()
		case verb == "link" && rest == "down":
			r.c.linkDown()
		case verb == "dev":
			name, payload, _ := strings.Cut(rest, " ")
			r.c.received(name, []byte(payload))
		case verb == "hub":
			var m phoenix.Message
			if m, err = phoenix.Parse([]byte(rest)); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			err = r.c.fromHub(m)
		case verb == "joined":
			err = r.reply("ok", "{}")
		case verb == "turned_away":
			err = r.reply("error", rest)
		case verb == "crashed":
			event, payload, _ := strings.Cut(rest, " ")
			err = r.c.fromHub(phoenix.Message{JoinRef: r.join, Ref: r.join, Topic: channel, Event: event, Payload: json.RawMessage(payload)})
		case strings.HasPrefix(verb, "+"):
			d, bad := time.ParseDuration(verb[1:])
			if bad != nil {
				t.Fatal(bad)
			}
			err = r.pass(d)
		default:
			t.Fatalf("what is %q?", line)
		}
		r.done(err, 0)
	}
	return r.out.String()
}

// reply answers the last join.
func (r *replay) reply(status, response string) error {
	p := fmt.Sprintf(`{"status":%q,"response":%s}`, status, response)
	return r.c.fromHub(phoenix.Message{JoinRef: r.join, Ref: r.join, Topic: channel, Event: "phx_reply", Payload: json.RawMessage(p)})
}

// pass lets time go by, stopping at each deadline of the core's.
func (r *replay) pass(d time.Duration) error {
	end := r.c.now.Add(d)
	begin := r.c.now
	for n := 0; ; n++ {
		at := r.c.deadline()
		if at.IsZero() || at.After(end) || n > 10000 {
			r.c.now = end
			return nil
		}
		if at.After(r.c.now) {
			r.c.now = at
		}
		if r.c.over() {
			r.out.WriteString("  over\n")
			r.c.now = end
			return nil
		}
		err := r.c.tick()
		if r.c.now.Before(end) || err != nil {
			r.done(err, r.c.now.Sub(begin))
		}
		if err != nil || r.c.now.Equal(end) {
			return nil
		}
	}
}

// done writes down what the core left for the Session.
func (r *replay) done(err error, after time.Duration) {
	at := ""
	if after > 0 {
		at = fmt.Sprintf("+%s ", after)
	}
	for _, m := range r.c.hub {
		if m.Event == "heartbeat" {
			r.c.sock.Receive(phoenix.Message{Ref: m.Ref, Topic: "phoenix", Event: "phx_reply", Payload: json.RawMessage(`{"status":"ok","response":{}}`)})
			continue // answered, and of no interest here
		}
		if m.Event == "phx_join" {
			r.join = m.JoinRef
		}
		fmt.Fprintf(&r.out, "  %shub> %s\n", at, m.AppendJSON(nil))
	}
	for _, m := range r.c.dev {
		retained := ""
		if m.Retain {
			retained = " (retained)"
		}
		fmt.Fprintf(&r.out, "  %sdev> %s %s%s\n", at, m.Name, m.Payload, retained)
	}
	for _, n := range r.c.tally {
		if n.metric == dropped {
			fmt.Fprintf(&r.out, "  %sdropped: %s\n", at, n.label)
		}
	}
	if err != nil {
		fmt.Fprintf(&r.out, "  %serr> %v\n", at, err)
	}
	r.c.hub, r.c.dev, r.c.tally, r.c.notes = nil, nil, nil, nil
}
