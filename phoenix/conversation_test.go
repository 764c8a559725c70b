package phoenix

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite testdata/conversations/*.txt")

// A record is one line of a conversation recorded from a real NervesHub.
type record struct {
	Kind  string          `json:"kind"`
	Dir   string          `json:"dir"`
	Frame json.RawMessage `json:"frame"`
	Text  string          `json:"text"`
}

func readRecords(t *testing.T, file string) (all []record) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestConversations says again what the recorded client said, which must come
// out byte for byte, and hears what the server answered. What a Socket made of
// it is in the .txt file beside each recording.
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/conversations/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatal("no recordings", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl"), func(t *testing.T) {
			var heard strings.Builder
			s := NewSocket(epoch, 30*time.Second, 0)
			for _, r := range readRecords(t, file) {
				if r.Kind == "text" {
					fmt.Fprintln(&heard, replay(t, s, r))
				}
			}
			golden := strings.TrimSuffix(file, ".jsonl") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(heard.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if heard.String() != string(want) {
				t.Errorf("got\n%swant\n%s", heard.String(), want)
			}
		})
	}
}

func replay(t *testing.T, s *Socket, r record) string {
	t.Helper()
	m, err := Parse(r.Frame)
	if err != nil {
		t.Fatal(err)
	}
	if r.Dir == "down" {
		e := s.Receive(m)
		return strings.TrimRight(fmt.Sprintf("< %-7s %s %s %s", e.Kind, e.Topic, e.Event, e.Status), " ")
	}
	said, ok := Message{}, true
	switch m.Event {
	case "phx_join":
		said = s.Join(m.Topic, m.Payload)
	case "phx_leave":
		said, ok = s.Leave(m.Topic)
	case "heartbeat":
		said, ok, err = s.Tick(s.Deadline())
	default:
		said, ok = s.Push(m.Topic, m.Event, m.Payload)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !ok { // the recorded client went on talking to a dead channel
		return fmt.Sprintf("> not sent %s %s", m.Topic, m.Event)
	}
	if got := said.AppendJSON(nil); string(got) != string(r.Frame) {
		t.Fatalf("said %s\nwant %s", got, r.Frame)
	}
	return fmt.Sprintf("> %s %s", m.Topic, m.Event)
}

// TestMissedCrash is one of the conversations with its phx_error lost: the
// answer to the next push tells, and nothing is pushed after it.
func TestMissedCrash(t *testing.T) {
	var heard strings.Builder
	s := NewSocket(epoch, 30*time.Second, 0)
	for _, r := range readRecords(t, "testdata/conversations/90-status-too-soon-crashes-channel.jsonl") {
		if r.Kind == "text" && !strings.Contains(string(r.Frame), "phx_error") {
			fmt.Fprintln(&heard, replay(t, s, r))
		}
	}
	const want = `> device fwup_progress
< crashed device phx_reply error
> not sent device fwup_progress
< ignored device phx_reply
> not sent device fwup_progress
< ignored device phx_reply
> not sent device fwup_progress
< ignored device phx_reply
`
	if !strings.HasSuffix(heard.String(), want) {
		t.Errorf("got\n%swant at the end\n%s", heard.String(), want)
	}
}
