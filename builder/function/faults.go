package function

import (
	"errors"
	"fmt"
	"strings"
)

// faults collects everything that is wrong with a request.
type faults struct{ errs []error }

// add notes a fault of the field at path.
func (f *faults) add(path, format string, args ...any) {
	f.check(path, fmt.Errorf(format, args...))
}

// check notes err, if any, as a fault of the field at path.
func (f *faults) check(path string, err error) {
	if err != nil {
		f.errs = append(f.errs, fmt.Errorf("%s: %w", path, err))
	}
}

// split notes each line of err as a fault of the field at path.
func (f *faults) split(path string, err error) {
	if err == nil {
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		f.check(path, errors.New(line))
	}
}

// join notes an error that names its field itself.
func (f *faults) join(err error) {
	if err != nil {
		f.errs = append(f.errs, err)
	}
}

func (f *faults) err() error { return errors.Join(f.errs...) }
