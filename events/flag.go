package events

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Flag is a boolean that MLRun's client may write as text: y, yes, t, true, on, 1
// and n, no, f, false, off, 0, in any case.
type Flag bool

// UnmarshalJSON accepts a JSON boolean or one of the texts.
func (f *Flag) UnmarshalJSON(raw []byte) error {
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return fmt.Errorf("parse flag: %w", err)
	}
	switch v := value.(type) {
	case bool:
		*f = Flag(v)
		return nil
	case string:
		switch strings.ToLower(v) {
		case "y", "yes", "t", "true", "on", "1":
			*f = true
			return nil
		case "n", "no", "f", "false", "off", "0":
			*f = false
			return nil
		}
	}
	return fmt.Errorf("%.40s is neither a boolean nor a text that means one", raw)
}
