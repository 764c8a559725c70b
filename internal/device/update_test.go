package device_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/internal/device"
)

const (
	updateTopic   = "nh/probe/down/update"
	progressTopic = "nh/probe/up/progress"
	statusTopic   = "nh/probe/up/status"
)

// firmwareImage is 300 kB that differ everywhere.
var firmwareImage = func() []byte {
	b := make([]byte, 300_000)
	for i := range b {
		b[i] = byte(i*i>>3 ^ i)
	}
	return b
}()

func upperSum(b []byte) string {
	sum := sha256.Sum256(b)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// A store serves firmwareImage with ranges, as object stores do. Each request
// first meets the fault of its turn, if there is one.
type store struct {
	faults []func(http.ResponseWriter, *http.Request) (served bool)

	mu     sync.Mutex // guards ranges
	ranges []string   // the Range header of each request
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	turn := len(s.ranges)
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	s.mu.Unlock()
	if turn < len(s.faults) && s.faults[turn](w, r) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(firmwareImage))
}

func (s *store) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ranges)
}

// breakOff serves n bytes of what it promised and ends the connection.
func breakOff(n int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(firmwareImage)))
		w.Write(firmwareImage[:n])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// answer serves status and body, whatever was asked.
func answer(status int, body []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(status)
		w.Write(body)
		return true
	}
}

func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		b := start(t, device.Config{Flash: 30_000, Boot: 3 * time.Second}, s)
		event[device.HelloAcknowledged](t, b)
		from := time.Now()
		b.send(updateTopic, offer("http://web/f?X-Sig=a&b=c", firmwareImage, upperSum(firmwareImage)))
		_, i := b.await(0, published("nh/probe/up/rebooting"))
		if took := time.Since(from); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("300 kB at 30 kB/s took %v", took)
		}
		hello, _ := b.await(i, published("nh/probe/up/hello"))
		want := `{"v":1,"version":"1.5.0","uuid":"0b9f6a34-7f43-5a1e-9d0b-6a1f2f0e8a77","validated":false,"reverted":false,"packet":2048,` +
			`"product":"soil-probe","platform":"stm32l4","architecture":"arm"}`
		if hello.payload != want || hello.conn != 2 {
			t.Errorf("hello on connection %d\n%s\nwant on 2\n%s", hello.conn, hello.payload, want)
		}
		b.await(i, published("nh/probe/up/validated"))
		b.Drop()
		hello, _ = b.await(i, func(h heard) bool { return h.conn == 3 && h.kind == 3 })
		if want = strings.Replace(want, `"validated":false`, `"validated":true`, 1); hello.payload != want {
			t.Errorf("hello\n%s\nwant\n%s", hello.payload, want)
		}
		if got, want := b.payloads(statusTopic), []string{`{"status":"received"}`, `{"status":"started"}`, `{"status":"completed"}`}; !slices.Equal(got, want) {
			t.Errorf("status %q, want %q", got, want)
		}
		progress := b.payloads(progressTopic)
		if want := []string{`{"value":10,"stage":"downloading"}`, `{"value":20,"stage":"downloading"}`}; len(progress) != 10 || !slices.Equal(progress[:2], want) {
			t.Errorf("progress %q, want 10, 20 … 100", progress)
		}
		if got := s.asked(); !slices.Equal(got, []string{""}) {
			t.Errorf("ranges %q, want one request for all", got)
		}
		if c := b.device.Counts(); c.Updates != 1 || c.Running.Version != "1.5.0" {
			t.Errorf("counts %+v", c)
		}
		b.send(updateTopic, offer("http://web/f", firmwareImage, ""))
		if got := event[device.UpdateIgnored](t, b); !strings.Contains(got.Reason, "already running") {
			t.Errorf("got %v", got)
		}
	})
}

// What the store does to the requests, and what the device makes of it.
func TestDownload(t *testing.T) {
	flipped := slices.Clone(firmwareImage)
	flipped[200_000] ^= 1
	const all = ""
	tests := []struct {
		name   string
		faults []func(http.ResponseWriter, *http.Request) bool
		offer  string // default: one with size and checksum
		ranges []string
		status string // the last one
	}{
		{"goes on where it broke off", []func(http.ResponseWriter, *http.Request) bool{breakOff(100_000)}, "",
			[]string{all, "bytes=100000-"}, "completed"},
		{"breaks off often", []func(http.ResponseWriter, *http.Request) bool{breakOff(100_000), answer(503, nil), answer(429, nil)}, "",
			[]string{all, "bytes=100000-", "bytes=100000-", "bytes=100000-"}, "completed"},
		{"hangs up without an answer", []func(http.ResponseWriter, *http.Request) bool{func(http.ResponseWriter, *http.Request) bool {
			panic(http.ErrAbortHandler)
		}}, "", []string{all, all}, "completed"},
		{"server without ranges", []func(http.ResponseWriter, *http.Request) bool{breakOff(100_000), answer(200, firmwareImage)}, "",
			[]string{all, "bytes=100000-"}, "completed"},
		{"another range than asked for", []func(http.ResponseWriter, *http.Request) bool{breakOff(100_000), func(w http.ResponseWriter, r *http.Request) bool {
			r.Header.Set("Range", "bytes=90000-")
			return false
		}}, "", []string{all, "bytes=100000-", all}, "completed"},
		{"range refused", []func(http.ResponseWriter, *http.Request) bool{breakOff(100_000), answer(416, nil)}, "",
			[]string{all, "bytes=100000-", all}, "completed"},
		{"leftover of another file", []func(http.ResponseWriter, *http.Request) bool{func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(flipped)))
			w.Write(flipped[:250_000])
			return true
		}}, "", []string{all, "bytes=250000-", all}, "completed"},
		{"wrong checksum", []func(http.ResponseWriter, *http.Request) bool{answer(200, flipped)}, "", []string{all}, "failed"},
		{"too long", []func(http.ResponseWriter, *http.Request) bool{answer(200, append(slices.Clone(firmwareImage), 0))}, "", []string{all}, "failed"},
		{"URL that expired", []func(http.ResponseWriter, *http.Request) bool{answer(403, nil)}, "", []string{all}, "rescheduled"},
		{"gone", []func(http.ResponseWriter, *http.Request) bool{answer(404, nil)}, "", []string{all}, "rescheduled"},
		{"server out of order", slices.Repeat([]func(http.ResponseWriter, *http.Request) bool{answer(500, nil)}, 11), "",
			slices.Repeat([]string{all}, 11), "rescheduled"},
		{"offer without size and checksum", nil, offer("http://web/f", nil, ""), []string{all}, "completed"},
		{"the same, broken off", []func(http.ResponseWriter, *http.Request) bool{breakOff(100_000)}, offer("http://web/f", nil, ""),
			[]string{all, "bytes=100000-"}, "completed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &store{faults: test.faults}
				b := start(t, device.Config{Flash: 1 << 20}, s)
				event[device.HelloAcknowledged](t, b)
				if test.offer == "" {
					test.offer = offer("http://web/f?secret", firmwareImage, upperSum(firmwareImage))
				}
				b.send(updateTopic, test.offer)
				last, _ := b.await(0, func(h heard) bool {
					return h.topic == statusTopic && !strings.Contains(h.payload, "received") && !strings.Contains(h.payload, "started")
				})
				if !strings.HasPrefix(last.payload, `{"status":"`+test.status+`"`) {
					t.Errorf("status %s, want %s", last.payload, test.status)
				}
				if test.status == "rescheduled" && !strings.Contains(last.payload, `"delay_for":60000`) {
					t.Errorf("status %s without a delay of a minute", last.payload)
				}
				if got := s.asked(); !slices.Equal(got, test.ranges) {
					t.Errorf("ranges\n%q\nwant\n%q", got, test.ranges)
				}
				for _, e := range b.drain() {
					if strings.Contains(e.String(), "secret") {
						t.Errorf("the URL's query is told: %s", e)
					}
				}
				if strings.Contains(last.payload, "secret") {
					t.Errorf("the URL's query is told: %s", last.payload)
				}
			})
		})
	}
}

// A download goes on while MQTT is away; the update said again after the hello
// brings a fresh URL and no second start.
func TestUpdateOutlivesConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{faults: []func(http.ResponseWriter, *http.Request) bool{breakOff(200_000), func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/new" {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			return false
		}}}
		b := start(t, device.Config{Flash: 100_000}, s)
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, offer("http://web/old", firmwareImage, upperSum(firmwareImage)))
		event[device.Progress](t, b)
		b.Drop()
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, offer("http://web/new", firmwareImage, upperSum(firmwareImage)))
		b.await(0, published("nh/probe/up/rebooting"))
		if got, want := b.payloads(statusTopic), []string{`{"status":"received"}`, `{"status":"started"}`, `{"status":"completed"}`}; !slices.Equal(got, want) {
			t.Errorf("status %q, want %q", got, want)
		}
	})
}

// A URL that is refused does not matter when a fresh one has come meanwhile.
func TestRefusedButRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{faults: []func(http.ResponseWriter, *http.Request) bool{func(w http.ResponseWriter, r *http.Request) bool {
			time.Sleep(5 * time.Second)
			w.WriteHeader(http.StatusForbidden)
			return true
		}}}
		b := start(t, device.Config{}, s)
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, offer("http://web/old", firmwareImage, ""))
		event[device.UpdateReceived](t, b)
		b.send(updateTopic, offer("http://web/new", firmwareImage, ""))
		event[device.Validated](t, b)
	})
}

func TestUpdateWithdrawnAndReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		b := start(t, device.Config{Flash: 10_000}, s)
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, "") // nothing to do
		b.send(updateTopic, offer("http://web/f", firmwareImage, upperSum(firmwareImage)))
		event[device.Progress](t, b)
		b.send(updateTopic, "")
		if got := event[device.UpdateIgnored](t, b); got.Reason != "withdrawn" {
			t.Errorf("got %v", got)
		}
		time.Sleep(time.Hour)
		b.send(updateTopic, offer("http://web/f", firmwareImage, upperSum(firmwareImage)))
		if got := event[device.UpdateReceived](t, b); got.Resumed < 30_000 {
			t.Errorf("%d bytes kept, want what 10 %% took", got.Resumed)
		}
		other := strings.ReplaceAll(offer("http://web/f", firmwareImage, upperSum(firmwareImage)), "0b9f6a34", "0b9f6a35")
		b.send(updateTopic, other)
		if got := event[device.UpdateReceived](t, b); got.Resumed != 0 || !strings.HasPrefix(got.UUID, "0b9f6a35") {
			t.Errorf("got %v", got)
		}
		b.send(updateTopic, `{"update_available":false,"firmware_url":null}`)
		if got := event[device.UpdateIgnored](t, b); got.Reason != "no update available" {
			t.Errorf("got %v", got)
		}
		hello, _ := b.await(0, func(h heard) bool { return h.conn == 2 && h.topic == "nh/probe/up/hello" })
		if !strings.Contains(hello.payload, "0b9f6a35") {
			t.Errorf("hello %s", hello.payload)
		}
	})
}

// The reason of a failure never makes a status that does not fit: it would cut
// every connection it is said on.
func TestStatusFits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{faults: []func(http.ResponseWriter, *http.Request) bool{answer(200, []byte("short and wrong"))}}
		b := start(t, device.Config{Packet: 200}, s)
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, `{"version":"2.0.0","sha256":"ff","size":15,"url":"http://web/f"}`)
		last, _ := b.await(0, func(h heard) bool { return strings.Contains(h.payload, "failed") })
		if want := `{"status":"failed","reason":"wrong image: sha25"}`; last.payload != want {
			t.Errorf("got %s, want %s", last.payload, want)
		}
		if c := b.device.Counts(); c.Connects != 1 || c.Lost != 0 {
			t.Errorf("counts %+v", c)
		}
	})
}

func TestShortForms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{faults: []func(http.ResponseWriter, *http.Request) bool{answer(403, nil)}}
		b := start(t, device.Config{ShortHello: true}, s)
		event[device.HelloAcknowledged](t, b)
		b.send(updateTopic, offer("http://web/f", firmwareImage, ""))
		event[device.UpdateFailed](t, b)
		b.send(updateTopic, offer("http://web/f", firmwareImage, ""))
		event[device.Validated](t, b)
		synctest.Wait()
		for topic, want := range map[string][]string{
			statusTopic:             {"received", "started", "rescheduled 60000 download refused: 403 Forbidden", "received", "started", "completed"},
			"nh/probe/up/hello":     {"1.0.0", "1.5.0"},
			"nh/probe/up/rebooting": {""},
			"nh/probe/up/validated": {""},
			progressTopic:           {"100"},
		} {
			got := b.payloads(topic)
			if topic == progressTopic {
				got = got[len(got)-1:]
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", topic, got, want)
			}
		}
	})
}
