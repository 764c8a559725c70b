package phoenix

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, tt := range []struct {
		name, frame string
		want        Message
		err         string
	}{
		{"reply", `["1","2","device","phx_reply",{"status":"ok","response":{}}]`,
			Message{"1", "2", "device", "phx_reply", json.RawMessage(`{"status":"ok","response":{}}`)}, ""},
		{"null refs", `[null,null,"device","reboot",{}]`, Message{"", "", "device", "reboot", json.RawMessage(`{}`)}, ""},
		{"numbers as refs", `[3,-4.5e1,"t","e",{}]`, Message{"3", "-4.5e1", "t", "e", json.RawMessage(`{}`)}, ""},
		{"payload verbatim", `["","", "t" ,"e", {"a" : "<&>\u2028é"} ]`,
			Message{"", "", "t", "e", json.RawMessage(`{"a" : "<&>\u2028é"}`)}, ""},
		{"any payload", `["1","1","t","e",["health"]]`, Message{"1", "1", "t", "e", json.RawMessage(`["health"]`)}, ""},
		{"null payload", `["1","1","t","e",null]`, Message{"1", "1", "t", "e", json.RawMessage(`null`)}, ""},
		{"extra elements", `["1","1","t","e",{},6,"seven"]`, Message{"1", "1", "t", "e", json.RawMessage(`{}`)}, ""},
		{"escapes", `["\u0031","1","a\"b\\c\n","e",{}]`, Message{"1", "1", "a\"b\\c\n", "e", json.RawMessage(`{}`)}, ""},

		{"empty", ``, Message{}, "unexpected end"},
		{"no JSON", `not json`, Message{}, "invalid character"},
		{"version 1", `{"topic":"t","event":"e","payload":{},"ref":"1"}`, Message{}, "cannot unmarshal"},
		{"null", `null`, Message{}, "an array of 0"},
		{"four elements", `["1","1","t","e"]`, Message{}, "an array of 4"},
		{"two values", `["1","1","t","e",{}][]`, Message{}, "invalid character"},
		{"join_ref an object", `[{},"1","t","e",{}]`, Message{}, "join_ref is {}"},
		{"ref true", `["1",true,"t","e",{}]`, Message{}, "ref is true"},
		{"topic null", `["1","1",null,"e",{}]`, Message{}, "topic is null"},
		{"event a number", `["1","1","t",7,{}]`, Message{}, "event is 7"},
		{"long culprit", `["1","1",["` + long + `"],"e",{}]`, Message{}, `topic is ["` + long[:30]},
		{"not UTF-8", "[\"1\",\"1\",\"t\",\"e\",{\"a\":\"\xff\"}]", Message{}, "not UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Parse([]byte(tt.frame))
			if tt.err != "" {
				if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.err) || len(err.Error()) > 150 {
					t.Fatalf("got error %v, want a short ErrMalformed with %q", err, tt.err)
				}
				return
			}
			if err != nil || !equal(m, tt.want) {
				t.Fatalf("got %+v, %v, want %+v", m, err, tt.want)
			}
		})
	}
}

func TestAppendJSON(t *testing.T) {
	for _, tt := range []struct {
		m    Message
		want string
	}{
		{Message{}, `[null,null,"","",{}]`},
		{Message{"1", "2", "device", "phx_join", json.RawMessage(`{"a": "<b>&"}`)}, `["1","2","device","phx_join",{"a": "<b>&"}]`},
		{Message{Ref: "7", Topic: "phoenix", Event: "heartbeat", Payload: json.RawMessage{}}, `[null,"7","phoenix","heartbeat",{}]`},
		{Message{Topic: "<a>&\"\\\x00\x1f\n\x7f", Event: "é\u2028\xff"}, `[null,null,"<a>&\"\\\u0000\u001f\u000a` + "\x7f\",\"é\u2028\ufffd\",{}]"},
	} {
		got := string(tt.m.AppendJSON([]byte("kept")))
		if got != "kept"+tt.want {
			t.Errorf("%+v:\n got %s\nwant %s", tt.m, got, tt.want)
		}
		if !json.Valid([]byte(got[4:])) {
			t.Errorf("%s is not JSON", got[4:])
		}
	}
}

func TestValidPayload(t *testing.T) {
	for _, s := range []string{`{}`, ` {"a":[1,2,{"b":null}]} `, "\t\r\n{\"é\":\"\\ud83d\\ude00\"}\n"} {
		if !ValidPayload([]byte(s)) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{``, ` `, `null`, `[]`, `"a"`, `1`, `{`, `{}{}`, `{} x`, `{"a":}`, `{'a':1}`, `{"a":1,}`, "{\"a\":\"\xff\"}", "\ufeff{}"} {
		if ValidPayload([]byte(s)) {
			t.Errorf("%q is accepted", s)
		}
	}
}

var push = Message{"1", "4711", "device", "fwup_progress", json.RawMessage(`{"value":45,"stage":"downloading"}`)}

func TestPushDoesNotAllocate(t *testing.T) {
	b := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(1000, func() { b = push.AppendJSON(b[:0]) }); n != 0 {
		t.Errorf("AppendJSON allocates %v times", n)
	}
	if n := testing.AllocsPerRun(1000, func() { ValidPayload(push.Payload) }); n != 0 {
		t.Errorf("ValidPayload allocates %v times", n)
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	b.ReportAllocs()
	buf := make([]byte, 0, 256)
	for b.Loop() {
		buf = push.AppendJSON(buf[:0])
	}
}

func BenchmarkValidPayload(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		ValidPayload(push.Payload)
	}
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	frame := push.AppendJSON(nil)
	for b.Loop() {
		if _, err := Parse(frame); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzParse wants a typed error, or a Message that survives the wire.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`["1","1","device","phx_join",{"a":1}]`,
		`[null,"7","phoenix","phx_reply",{"status":"ok","response":{}}]`,
		`["2","7","extensions","phx_reply",{"status":"error","response":"detach"}]`,
		`[1,-2e3,"\ud800","\"\\\u0000",[]]`,
		`["1","1","t","e"]`, `[[],{},null,true,0]`, `{}`, "[\"\xff\"]",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || m.Payload != nil {
				t.Fatalf("%+v, %v", m, err)
			}
			return
		}
		again, err := Parse(m.AppendJSON(nil))
		if err != nil || !equal(m, again) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

// FuzzValidPayload wants a payload accepted exactly if a frame that carries it
// is understood as one object.
func FuzzValidPayload(f *testing.F) {
	for _, s := range []string{`{}`, ` {"a":[1,{}]} `, `{},{}`, `{}]`, `[]`, "{\"\xff\":1}", `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 8<<10 {
			return // encoding/json stops at 10000 levels, and a frame has one more
		}
		var object map[string]json.RawMessage
		want := utf8.Valid(p) && json.Unmarshal(p, &object) == nil && object != nil
		if got := ValidPayload(p); got != want {
			t.Fatalf("%q: got %v, want %v", p, got, want)
		}
		if !want {
			return
		}
		m, err := Parse(Message{Topic: "t", Event: "e", Payload: p}.AppendJSON(nil))
		if err != nil || !bytes.Equal(m.Payload, bytes.Trim(p, " \t\r\n")) {
			t.Fatalf("%q arrived as %q, %v", p, m.Payload, err)
		}
	})
}

func equal(a, b Message) bool {
	return a.JoinRef == b.JoinRef && a.Ref == b.Ref && a.Topic == b.Topic && a.Event == b.Event && bytes.Equal(a.Payload, b.Payload)
}
