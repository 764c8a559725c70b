package gateway

import (
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	wholeNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)
	sizeText    = regexp.MustCompile(`^([0-9]+)(KiB|MiB|GiB)$`)
)

// setScalar parses text into v. Its errors say what was found and what to write.
func setScalar(v reflect.Value, text string) error {
	switch v.Interface().(type) {
	case bool:
		lower := strings.ToLower(text)
		if lower != "true" && lower != "false" {
			return fmt.Errorf("found %s, want true or false", quote(text))
		}
		v.SetBool(lower == "true")
	case int:
		n, err := strconv.Atoi(text)
		if err != nil || !wholeNumber.MatchString(text) {
			return fmt.Errorf("found %s, want a whole number in plain digits, such as 8", quote(text))
		}
		v.SetInt(int64(n))
	case float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("found %s, want a number such as 5 or 0.5", quote(text))
		}
		v.SetFloat(f)
	case time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil && wholeNumber.MatchString(text) {
			return fmt.Errorf("found %s without a unit; write %[1]ss if you mean seconds", text)
		} else if err != nil {
			return fmt.Errorf("found %s, want a duration such as 30s, 10m or 24h", quote(text))
		}
		v.SetInt(int64(d))
	case Size:
		size, err := parseSize(text)
		if err != nil {
			return err
		}
		v.SetInt(int64(size))
	default:
		v.SetString(text)
	}
	return nil
}

func parseSize(text string) (Size, error) {
	m := sizeText.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("found %s, want a size in KiB, MiB or GiB such as 256MiB", quote(text))
	}
	unit := map[string]Size{"KiB": kib, "MiB": mib, "GiB": gib}[m[2]]
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("found %s, which is larger than any disk", quote(text))
	}
	return Size(n) * unit, nil
}

// String is the size in the largest unit that keeps it whole.
func (s Size) String() string {
	switch {
	case s != 0 && s%gib == 0:
		return fmt.Sprintf("%dGiB", s/gib)
	case s != 0 && s%mib == 0:
		return fmt.Sprintf("%dMiB", s/mib)
	case s != 0 && s%kib == 0:
		return fmt.Sprintf("%dKiB", s/kib)
	}
	return fmt.Sprintf("%d bytes", int64(s))
}
