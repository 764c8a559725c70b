package gateway

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// maxConfig is the largest configuration file that is read, bytes.
const maxConfig = 1 << 20

// Load reads the configuration file at path over [Default], then the GANGLION_
// variables of the environment over that, then the secrets from the files it
// names. Relative paths in it are relative to the file. The error is Mistakes:
// everything that is wrong, at once.
func Load(path string) (Config, error) {
	r := newReport(path)
	data := r.readConfig(path)
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		r.refuse("", "its directory is unknown: %v", err)
	}
	if err := r.err(); err != nil {
		return Config{}, err
	}
	return load(r, data, dir, os.Environ())
}

// load is Load of data, found in dir.
func load(r *report, data []byte, dir string, environ []string) (Config, error) {
	cfg := Default()
	cfg.MQTT.Embedded = nil // until it is known that external is not given
	if ok := r.decodeFile(data, &cfg); !ok {
		return Config{}, r.err()
	}
	r.decodeEnviron(environ, &cfg)
	if cfg.MQTT.Embedded == nil && cfg.MQTT.External == nil {
		cfg.MQTT.Embedded = Default().MQTT.Embedded
	}
	r.fillNames(&cfg)
	resolvePaths(&cfg, dir)
	r.checkAbsent(cfg)
	r.readFiles(&cfg)
	r.check(cfg)
	if err := r.err(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// readConfig is the text of the configuration file, if it can be trusted.
func (r *report) readConfig(path string) []byte {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.refuse("", "no such file; copy config.example.yaml there, or name another with --config")
		return nil
	case err != nil:
		r.refuse("", "cannot be read (%v); let the user the gateway runs as read it", cause(err))
		return nil
	case !info.Mode().IsRegular():
		r.refuse("", "not a regular file; name the configuration file with --config")
		return nil
	case info.Mode().Perm()&0o002 != 0:
		r.refuse("", "mode %#o lets anybody change it; chmod o-w it", info.Mode().Perm())
		return nil
	case info.Size() > maxConfig:
		r.refuse("", "%d bytes, more than the %d a configuration may have; is it the right file?", info.Size(), maxConfig)
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		r.refuse("", "cannot be read (%v); let the user the gateway runs as read it", cause(err))
	}
	return data
}

// cause is a file error without the path, which the line names already.
func cause(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// decodeFile reads the one YAML document of data. It is not ok if that is not
// YAML, and nothing more can be said about it.
func (r *report) decodeFile(data []byte, cfg *Config) (ok bool) {
	if at, ok := notText(data); ok {
		r.refuseAt(at, "", "not text; save the file as UTF-8 without control characters")
		return false
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return true // nothing but comments: the defaults
	case err != nil:
		r.refuseYAML(err)
		return false
	}
	if len(doc.Content) == 1 {
		r.decode(doc.Content[0], reflect.ValueOf(cfg).Elem(), "", "")
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		r.refuseYAML(err)
		return false
	default:
		r.refuseAt(position{line: second.Line, column: second.Column}, "",
			"a second document begins here (after ---), which nobody would read; keep one")
	}
	return true
}

// notText finds the first byte that no YAML may hold.
func notText(data []byte) (at position, found bool) {
	at = position{line: 1, column: 1}
	for len(data) > 0 {
		c, size := utf8.DecodeRune(data)
		switch {
		case c == utf8.RuneError && size == 1, c < ' ' && c != '\n' && c != '\r' && c != '\t', c == 0x7f:
			return at, true
		case c == '\n':
			at.line, at.column = at.line+1, 1
		default:
			at.column++
		}
		data = data[size:]
	}
	return position{}, false
}

// yamlError is how yaml.v3 says where it stopped.
var yamlError = regexp.MustCompile(`(?s)^yaml: (?:line ([0-9]+): )?(.*)$`)

func (r *report) refuseYAML(err error) {
	at, text := position{line: 1}, err.Error() // it leaves the first line unsaid
	if m := yamlError.FindStringSubmatch(text); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			at.line = line
		}
		text = m[2]
	}
	r.refuseAt(at, "", "not YAML (%.200s); look at indentation, colons and quotes around here", text)
}

// fillNames gives the gateway the host's name, and its MQTT client its own.
func (r *report) fillNames(cfg *Config) {
	if cfg.ID == "" {
		name, err := os.Hostname()
		if err != nil || name == "" {
			r.refuse("id", "found nothing, and the host has no name; give the gateway one")
		}
		cfg.ID = name
	}
	if e := cfg.MQTT.External; e != nil && e.ClientID == "" {
		e.ClientID = "ganglion-" + cfg.ID
	}
}

// resolvePaths makes every path absolute, as from dir.
func resolvePaths(cfg *Config, dir string) {
	leaves(reflect.ValueOf(cfg).Elem(), "", func(l leaf) {
		if p := l.value.String(); l.kind != "" && p != "" && !filepath.IsAbs(p) {
			l.value.SetString(filepath.Join(dir, p))
		}
	})
}
