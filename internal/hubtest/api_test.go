package hubtest

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// call makes one request of the API. The answer's body is decoded if it is JSON.
func (w *world) call(method, path, body string) (status int, answer map[string]any) {
	w.t.Helper()
	rec := httptest.NewRecorder()
	w.API().ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)))
	if rec.Body.Len() > 0 {
		if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
			w.t.Fatalf("%s %s: %v in %q", method, path, err, rec.Body)
		}
	}
	return rec.Code, answer
}

// do makes a request that must be answered with the given status.
func (w *world) do(status int, method, path, body string) map[string]any {
	w.t.Helper()
	got, answer := w.call(method, path, body)
	if got != status {
		w.t.Fatalf("%s %s %s: got %d %v, want %d", method, path, body, got, answer, status)
	}
	return answer
}

func TestAPIAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.end()
		w.addLab()
		w.AddDevice("away")
		w.AddDevice("here")
		c := w.dial("here")
		defer c.hangUp()
		synctest.Wait()
		image := base64.StdEncoding.EncodeToString([]byte("an image"))
		for _, q := range []struct {
			method, path, body string
			status             int
			says               string // in the error
		}{
			{"GET", "/healthz", "", 200, ""},
			{"GET", "/nowhere", "", 404, "no endpoint GET /nowhere"},
			{"PUT", "/devices/away", "", 404, "no endpoint PUT /devices/away"},
			{"GET", "/devices/nobody", "", 404, "no such device: nobody"},
			{"GET", "/devices/away", "", 200, ""},
			{"GET", "/devices/away?wait=joined", "", 400, "field:value"},
			{"GET", "/devices/away?wait=joined:true&timeout=soon", "", 400, "timeout"},
			{"GET", "/devices/away?wait=joined:true&timeout=2s", "", 504, "not joined:true within 2s"},
			{"POST", "/devices/new", "", 201, ""},
			{"POST", "/devices/a%2Fb", "", 201, ""},
			{"GET", "/devices/a%2Fb", "", 200, ""},
			{"DELETE", "/devices/new", "", 204, ""},
			{"DELETE", "/devices/nobody", "", 404, "no such device"},

			{"POST", "/devices/away/reboot", "", 204, ""}, // lost, as with NervesHub
			{"POST", "/devices/away/identify", "", 204, ""},
			{"POST", "/devices/nobody/reboot", "", 404, "no such device"},
			{"POST", "/devices/away/drop", "", 409, "away is not connected"},
			{"POST", "/devices/away/vanish", "", 409, "not connected"},
			{"POST", "/devices/away/crash", "", 409, "not connected"},
			{"POST", "/devices/away/reconnect", "", 409, "not connected"},
			{"POST", "/devices/here/crash", "", 204, ""},

			{"POST", "/devices/away/update", "", 404, "no such firmware"},
			{"POST", "/devices/away/update", `{"version":"9.9.9"}`, 404, "no such firmware"},
			{"POST", "/devices/away/update", `{"uuid":"` + uuid110 + `"}`, 204, ""},
			{"POST", "/devices/away/update", `{"version":"2.0.0"}`, 409, "inflight"},
			{"POST", "/devices/away/update", `{"versoin":"2.0.0"}`, 400, "versoin"},
			{"POST", "/devices/away/update", `{} {}`, 400, "more than one JSON value"},
			{"POST", "/devices/away/updates", `{}`, 400, "enabled: missing"},
			{"POST", "/devices/away/updates", `{"enabled":true}`, 204, ""},
			{"DELETE", "/devices/away/penalty", "", 204, ""},

			{"POST", "/devices/away/refuse", `{"how":"418"}`, 400, `how: got "418"`},
			{"POST", "/devices/away/refuse", `{"times":-1}`, 400, "times: got -1"},
			{"POST", "/devices/away/refuse", `{"how":"503","times":2}`, 204, ""},
			{"POST", "/refuse", `{"how":"shed","times":0}`, 204, ""},
			{"POST", "/devices/away/delay", `{"delay":"soon"}`, 400, "delay: got"},
			{"POST", "/devices/away/delay", `{"delay":"500ms"}`, 204, ""},
			{"POST", "/devices/away/push", `{}`, 400, "event: missing"},
			{"POST", "/devices/away/push", `{"event":"identify"}`, 204, ""},
			{"POST", "/devices/away/script", `{"text":"1"}`, 409, "does not take scripts"},
			{"POST", "/devices/nobody/script", `{"text":"1"}`, 404, "no such device"},
			{"POST", "/devices/away/certificate", `{"cert":"x"}`, 400, "not PEM"},

			{"POST", "/firmware", `{"version":"3.0.0"}`, 400, "must be given"},
			{"POST", "/firmware", `{"version":"3.0.0","product":"p","platform":"p","architecture":"a","size":-1}`, 400, "size: got -1"},
			{"POST", "/firmware", `{"version":"3.0.0","product":"p","platform":"p","architecture":"a","size":1,"image":"` + image + `"}`, 400, "give one"},
			{"POST", "/firmware", `{"version":"3.0.0","product":"p","platform":"p","architecture":"a","image":"` + image + `"}`, 201, ""},
			{"POST", "/release", `{"version":"3.0.0"}`, 204, ""},
			{"POST", "/devices/here/update", "", 204, ""}, // to the release
			{"POST", "/firmware", `{"version":"3.0.0","product":"p","platform":"p","architecture":"a","size":9}`, 201, ""},
			{"POST", "/release", `{"version":"3.0.0"}`, 409, "there are 2, name one by uuid"},
			{"POST", "/release", `{"version":"4.0.0"}`, 404, "no such firmware"},
			{"POST", "/extensions/health", `{"on":false}`, 204, ""},
			{"POST", "/drain", "", 202, ""},
		} {
			status, answer := w.call(q.method, q.path, q.body)
			says, _ := answer["error"].(string)
			if status != q.status || !strings.Contains(says, q.says) || (says == "") != (q.says == "") {
				t.Errorf("%s %s %s: got %d %q, want %d %q", q.method, q.path, q.body, status, says, q.status, q.says)
			}
		}
	})
}

// One update, asked for and watched over the API alone.
func TestAPIUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.end()
		c := w.dial("dev-1")
		defer c.hangUp()
		c.send(joinFrame(1, uuid100, "1.0.0", ""))
		w.do(200, "GET", "/devices/dev-1?wait=joined:true&wait=metadata.version:1.0.0", "")

		f := w.do(201, "POST", "/firmware",
			`{"uuid":"`+uuid110+`","version":"1.1.0","product":"gw","platform":"gwtest","architecture":"arm","size":1000}`)
		if f["size"] != 1000.0 || len(f["checksum"].(string)) != 64 {
			t.Errorf("firmware: %v", f)
		}
		w.do(204, "POST", "/release", `{"version":"1.1.0"}`)
		if u := string(c.event("update")); !strings.Contains(u, uuid110) || !strings.Contains(u, f["checksum"].(string)) {
			t.Errorf("update: %s", u)
		}
		time.Sleep(time.Second)

		received := make(chan struct{})
		go func() {
			defer close(received)
			w.do(200, "GET", "/devices/dev-1?wait=inflight.status:received", "")
		}()
		synctest.Wait()
		select {
		case <-received:
			t.Error("the wait ended before its condition held")
		default:
		}
		c.send(`["1","2","device","status_update",{"status":"received"}]`)
		<-received

		c.send(joinFrame(3, uuid110, "1.1.0", ""))
		s := w.do(200, "GET", "/devices/dev-1?wait=inflight:null&wait=successes:1", "")
		if v := s["metadata"].(map[string]any)["version"]; v != "1.1.0" {
			t.Errorf("version on record is %v", v)
		}
	})
}

func TestAPITrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.end()
		c := w.dial("dev-1")
		c.send(joinFrame(1, uuid100, "1.0.0", ""))
		c.event("phx_reply")

		w.do(204, "POST", "/devices/dev-1/delay", `{"delay":"3s"}`)
		start := time.Now()
		w.do(204, "POST", "/devices/dev-1/push", `{"event":"identify","payload":{"a":"<&>"}}`)
		if p := c.event("identify"); string(p) != `{"a":"<&>"}` || time.Since(start) < 3*time.Second {
			t.Errorf("identify %s after %v", p, time.Since(start))
		}
		w.do(204, "POST", "/devices/dev-1/delay", `{"delay":"0s"}`)
		w.do(204, "POST", "/devices/dev-1/crash", "")
		if p := c.event("phx_error"); string(p) != `{"reason":"channel_crash"}` {
			t.Errorf("phx_error %s", p)
		}
		w.do(204, "POST", "/devices/dev-1/drop", "")
		<-c.done

		w.do(204, "POST", "/devices/dev-1/refuse", `{"how":"503"}`)
		_, res, err := w.tryDial("dev-1")
		if err == nil || res == nil || res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("dial: %v, want a 503", err)
		}
		w.dial("dev-1").hangUp()
	})
}

func TestAPICertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.end()
		synctest.Wait() // the endpoints are up
		leaf, err := w.leaf("upload-1")
		if err != nil {
			t.Fatal(err)
		}
		w.do(201, "POST", "/devices/upload-1", "")
		cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}))
		body := string(marshal(map[string]string{"cert": cert}))
		w.do(204, "POST", "/devices/upload-1/certificate", body)
		w.do(422, "POST", "/devices/upload-1/certificate", body) // it is stored already
		if n := len(w.cfg.Auth.Certificates("upload-1")); n != 1 {
			t.Errorf("%d certificates stored, want 1", n)
		}
	})
}

func TestWaitConditions(t *testing.T) {
	s := DeviceState{ID: "a:b", Joined: true, Joins: 3, Metadata: &Metadata{Version: "1.1.0"}, Audit: []string{"x"}}
	for condition, want := range map[string]bool{
		"joined:true": true, "joined:false": false, "joins:3": true, "joins:30": false, "id:a:b": true,
		"metadata.version:1.1.0": true, "metadata.version:1.1": false, "metadata.colour:red": false,
		"inflight:null": true, "inflight.status:received": false, "joined.deeper:null": true, `audit:["x"]`: true,
	} {
		if got := meets(s, condition); got != want {
			t.Errorf("%s: %v, want %v", condition, got, want)
		}
	}
}
