package phoenix

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A step is what one side does: "join T", "leave T" and "push T E" are ours,
// and the answer is the frame or "-"; everything else is a frame of the
// server's, and the answer is what it means.
type step struct{ do, want string }

func TestSocket(t *testing.T) {
	joined := []step{
		{`join device`, `["1","1","device","phx_join",{}]`},
		{`["1","1","device","phx_reply",{"status":"ok","response":{}}]`, `joined device ok {}`},
	}
	const crashed = `{"status":"error","response":{"reason":"unmatched topic"}}`
	for name, steps := range map[string][]step{
		"push needs an answered join": {
			{`push device a`, `-`},
			{`join device`, `["1","1","device","phx_join",{}]`},
			{`push device a`, `-`},
			{`["1","1","device","phx_reply",{"status":"ok","response":{}}]`, `joined device ok {}`},
			{`push device a`, `["1","2","device","a",{}]`},
		},
		"join refused": {
			{`join device`, `["1","1","device","phx_join",{}]`},
			{`["1","1","device","phx_reply",{"status":"error","response":{"error":"could not connect"}}]`, `refused device error {"error":"could not connect"}`},
			{`push device a`, `-`},
			{`[null,null,"device","update",{}]`, `ignored device {}`},
		},
		"join of an unknown topic has no join_ref": {
			{`join nosuch`, `["1","1","nosuch","phx_join",{}]`},
			{`[null,"1","nosuch","phx_reply",` + crashed + `]`, `refused nosuch error {"reason":"unmatched topic"}`},
		},
		"a join answered without sense is refused": {
			{`join device`, `["1","1","device","phx_join",{}]`},
			{`["1","1","device","phx_reply",["ok"]]`, `refused device ["ok"]`},
		},
		"bare array and bare string": {
			{`join extensions`, `["1","1","extensions","phx_join",{}]`},
			{`["1","1","extensions","phx_reply",{"status":"ok","response":["health"]}]`, `joined extensions ok ["health"]`},
			{`push extensions geo:attached`, `["1","2","extensions","geo:attached",{}]`},
			{`["1","2","extensions","phx_reply",{"status":"error","response":"detach"}]`, `replied extensions error "detach"`},
			{`["1",null,"extensions","health:check",{}]`, `pushed extensions {}`},
		},
		"re-join": append(joined,
			step{`join device`, `["2","2","device","phx_join",{}]`},
			step{`push device a`, `-`},
			step{`[null,null,"device","update",{"a":1}]`, `pushed device {"a":1}`}, // overtakes the answer
			step{`["1",null,"device","scripts/run",{}]`, `ignored device {}`},
			step{`["2","2","device","phx_reply",{"status":"ok","response":{}}]`, `joined device ok {}`},
			step{`["1","1","device","phx_close",{}]`, `ignored device {}`},
			step{`["1","1","device","phx_error",{}]`, `ignored device {}`},
			step{`["1","1","device","phx_reply",{"status":"error","response":{}}]`, `ignored device {"status":"error","response":{}}`},
			step{`push device a`, `["2","3","device","a",{}]`},
		),
		"re-join refused": append(joined,
			step{`join device`, `["2","2","device","phx_join",{}]`},
			step{`["2","2","device","phx_reply",{"status":"error","response":{"reason":"join crashed"}}]`, `refused device error {"reason":"join crashed"}`},
			step{`["1","1","device","phx_close",{}]`, `ignored device {}`},
			step{`push device a`, `-`},
		),
		"the join answered twice": append(joined,
			step{`["1","1","device","phx_reply",{"status":"error","response":{}}]`, `ignored device error {}`},
			step{`push device a`, `["1","2","device","a",{}]`},
		),
		"crash": append(joined,
			step{`["1","1","device","phx_error",{"reason":"channel_crash"}]`, `crashed device {"reason":"channel_crash"}`},
			step{`push device a`, `-`},
			step{`["1","1","device","phx_error",{}]`, `ignored device {}`},
			step{`join device`, `["2","2","device","phx_join",{}]`},
		),
		"crash in the old spelling": append(joined,
			step{`["1","1","device","phx_err",{}]`, `crashed device {}`},
		),
		"crash without join_ref": append(joined,
			step{`[null,null,"device","phx_error",{}]`, `crashed device {}`},
		),
		"crash while joining": {
			{`join device`, `["1","1","device","phx_join",{}]`},
			{`["1","1","device","phx_error",{}]`, `crashed device {}`},
		},
		"closed": append(joined,
			step{`["1","1","device","phx_close",{}]`, `closed device {}`},
			step{`push device a`, `-`},
		),
		"crash seen by an unmatched push": append(joined,
			step{`push device a`, `["1","2","device","a",{}]`},
			step{`push device b`, `["1","3","device","b",{}]`},
			step{`[null,"2","device","phx_reply",` + crashed + `]`, `crashed device error {"reason":"unmatched topic"}`},
			step{`[null,"3","device","phx_reply",` + crashed + `]`, `ignored device ` + crashed},
		),
		"unmatched push of the channel before": append(joined,
			step{`push device a`, `["1","2","device","a",{}]`},
			step{`["1","1","device","phx_error",{}]`, `crashed device {}`},
			step{`join device`, `["3","3","device","phx_join",{}]`},
			step{`[null,"2","device","phx_reply",` + crashed + `]`, `ignored device error {"reason":"unmatched topic"}`},
			step{`["3","3","device","phx_reply",{"status":"ok","response":{}}]`, `joined device ok {}`},
		),
		"unmatched in the name of the channel is a reply": append(joined,
			step{`push device a`, `["1","2","device","a",{}]`},
			step{`["1","2","device","phx_reply",` + crashed + `]`, `replied device error {"reason":"unmatched topic"}`},
		),
		"other errors without join_ref are replies": append(joined,
			step{`push device a`, `["1","2","device","a",{}]`},
			step{`[null,"2","device","phx_reply",{"status":"error","response":"no"}]`, `replied device error "no"`},
			step{`["1","x","device","phx_reply",{"status":"ok","response":{}}]`, `ignored device ok {}`},
			step{`["1",null,"device","phx_reply",{"status":"ok","response":{}}]`, `ignored device ok {}`},
		),
		"leave": append(joined,
			step{`leave device`, `["1","2","device","phx_leave",{}]`},
			step{`leave device`, `-`},
			step{`push device a`, `-`},
			step{`join device`, `["3","3","device","phx_join",{}]`},
			step{`["1","2","device","phx_reply",{"status":"ok","response":{}}]`, `ignored device {"status":"ok","response":{}}`},
			step{`["1","1","device","phx_close",{}]`, `ignored device {}`},
			step{`["3","3","device","phx_reply",{"status":"ok","response":{}}]`, `joined device ok {}`},
		),
		"a ref on a push, and phx_err": append(joined,
			step{`["1","some-ref-1","device","update",{"a":1}]`, `pushed device {"a":1}`},
			step{`["1","1","device","phx_err",{"reason":"tbd"}]`, `crashed device {"reason":"tbd"}`},
		),
		"channels do not concern each other": append(joined,
			step{`join console`, `["2","2","console","phx_join",{}]`},
			step{`["2","2","console","phx_reply",{"status":"ok","response":{}}]`, `joined console ok {}`},
			step{`join extensions`, `["3","3","extensions","phx_join",{}]`},
			step{`["3","3","extensions","phx_reply",{"status":"error","response":{}}]`, `refused extensions error {}`},
			step{`["2","2","console","phx_error",{}]`, `crashed console {}`},
			step{`push device a`, `["1","4","device","a",{}]`},
		),
		"unknown events and topics": append(joined,
			step{`[null,null,"device","no_such_event",{}]`, `pushed device {}`},
			step{`[null,null,"phoenix","no_such_event",{}]`, `ignored phoenix {}`},
			step{`[null,"9","phoenix","phx_reply",{}]`, `ignored phoenix {}`},
			step{`[null,null,"phoenix","phx_reply",{}]`, `ignored phoenix {}`},
		),
	} {
		t.Run(name, func(t *testing.T) {
			s := NewSocket(epoch, time.Minute, 0)
			for i, st := range steps {
				if got := act(t, s, st.do); got != st.want {
					t.Fatalf("step %d, %s:\n got %s\nwant %s", i, st.do, got, st.want)
				}
			}
		})
	}
}

func act(t *testing.T, s *Socket, do string) string {
	t.Helper()
	var m Message
	ok := true
	switch f := strings.Fields(do); f[0] {
	case "join":
		m = s.Join(f[1], nil)
	case "leave":
		m, ok = s.Leave(f[1])
	case "push":
		m, ok = s.Push(f[1], f[2], nil)
		if joined := s.Joined(f[1]); joined != ok {
			t.Fatalf("%s: Joined %v, but pushed %v", do, joined, ok)
		}
	default:
		m, err := Parse([]byte(do))
		if err != nil {
			t.Fatal(err)
		}
		e := s.Receive(m)
		if e.Event != m.Event || e.Ref != m.Ref {
			t.Fatalf("%s became %+v", do, e)
		}
		return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", e.Kind, e.Topic, e.Status, e.Payload)), " ")
	}
	if !ok {
		return "-"
	}
	return string(m.AppendJSON(nil))
}

func TestHeartbeat(t *testing.T) {
	s := NewSocket(epoch, 30*time.Second, 7*time.Second)
	at := func(d time.Duration) time.Time { return epoch.Add(d) }
	tick := func(d time.Duration) string {
		t.Helper()
		m, due, err := s.Tick(at(d))
		switch {
		case errors.Is(err, ErrSilent):
			return "silent"
		case err != nil:
			t.Fatal(err)
		case !due:
			return "-"
		}
		return string(m.AppendJSON(nil))
	}
	answer := func(ref string) {
		t.Helper()
		m := Message{Ref: ref, Topic: "phoenix", Event: "phx_reply", Payload: json.RawMessage(`{"status":"ok","response":{}}`)}
		if e := s.Receive(m); e.Kind != Ignored {
			t.Errorf("%+v", e)
		}
	}
	want := func(got, want string, deadline time.Duration) {
		t.Helper()
		if got != want || !s.Deadline().Equal(at(deadline)) {
			t.Fatalf("got %s, next at %v, want %s, next at %v", got, s.Deadline().Sub(epoch), want, deadline)
		}
	}
	want(tick(6999*time.Millisecond), `-`, 7*time.Second)
	want(tick(7*time.Second), `[null,"1","phoenix","heartbeat",{}]`, 37*time.Second)
	want(tick(8*time.Second), `-`, 37*time.Second)
	answer("1")
	want(tick(38*time.Second), `[null,"2","phoenix","heartbeat",{}]`, 68*time.Second) // late, and no double beat
	answer("1")                                                                       // an old one proves nothing
	s.Join("device", nil)
	answer("3") // nor does the answer to something else
	want(tick(68*time.Second), `silent`, 98*time.Second)
	answer("2") // late, but alive after all
	want(tick(98*time.Second), `[null,"4","phoenix","heartbeat",{}]`, 128*time.Second)

	if s := NewSocket(epoch, time.Minute, 0); !s.Deadline().Equal(at(time.Minute)) {
		t.Errorf("without a phase the first heartbeat is at %v", s.Deadline())
	}
	if s := NewSocket(epoch, 0, 0); !s.Deadline().Equal(at(30 * time.Second)) {
		t.Errorf("by default the first heartbeat is at %v", s.Deadline())
	}
}

// FuzzSocket lets a server say anything, in any order, to a Socket that goes
// on talking. It may not panic, nor lose count of what is joined.
func FuzzSocket(f *testing.F) {
	f.Add("j0\n[\"1\",\"1\",\"device\",\"phx_reply\",{\"status\":\"ok\",\"response\":{}}]\np0\n" +
		"[null,\"2\",\"device\",\"phx_reply\",{\"status\":\"error\",\"response\":{\"reason\":\"unmatched topic\"}}]")
	f.Add("j1\nj1\n[\"2\",\"2\",\"console\",\"phx_reply\",{\"status\":\"ok\"}]\n[\"1\",\"1\",\"console\",\"phx_close\",{}]\nl1\nt")
	f.Add("t\n[null,\"1\",\"phoenix\",\"phx_reply\",{}]\nt\nt\nt\n[1,1,\"devices\",\"phx_err\",null]")
	f.Fuzz(func(t *testing.T, script string) {
		now := epoch
		s := NewSocket(now, time.Second, 0)
		topics := []string{"device", "console"}
		for line := range strings.Lines(script) {
			line = strings.TrimSuffix(line, "\n")
			if line == "" {
				continue
			}
			topic := topics[int(line[len(line)-1])%2]
			switch line[0] {
			case 'j':
				s.Join(topic, nil)
				if s.Joined(topic) {
					t.Fatal("joined before the answer")
				}
			case 'p':
				if m, ok := s.Push(topic, "e", nil); ok != s.Joined(topic) || ok && m.JoinRef == "" {
					t.Fatalf("%+v, %v", m, ok)
				}
			case 'l':
				s.Leave(topic)
				if s.Joined(topic) {
					t.Fatal("joined after leaving")
				}
			case 't':
				now = now.Add(time.Second)
				if _, due, err := s.Tick(now); due == (err != nil) || !s.Deadline().After(now) {
					t.Fatalf("due %v, %v, next %v", due, err, s.Deadline())
				}
			default:
				m, err := Parse([]byte(line))
				if err != nil {
					continue
				}
				before := s.Joined("device")
				e := s.Receive(m)
				switch after := s.Joined(e.Topic); {
				case e.Kind == Joined && !after, e.Kind >= Refused && after:
					t.Fatalf("%+v, and joined is %v", e, after)
				case e.Topic != "device" && before != s.Joined("device"):
					t.Fatalf("%+v changed another channel", e)
				}
			}
		}
	})
}
