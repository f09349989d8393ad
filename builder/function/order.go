package function

import (
	"fmt"
	"slices"

	"kiln/builder"
)

// Values of Input.LayerOrder.
const (
	orderAuto  = "auto"
	orderFirst = "source_first"
	orderLast  = "source_last"
)

// layerOrder checks the wish of the request.
func (r resolver) layerOrder() string {
	order := r.in.LayerOrder
	setDefault(&order, orderAuto)
	if !slices.Contains([]string{orderAuto, orderFirst, orderLast}, order) {
		r.faults.add("options.layer_order", "%.80q is none of auto, source_first and source_last", r.in.LayerOrder)
	}
	return order
}

// place puts the source before the commands and requirements, as MLRun does, or after
// them, when none of them can depend on it: a changed source then leaves what they
// made as it is. Whatever is not recognised counts as dependent.
func (r resolver) place(s *builder.Source, add additions) {
	if s == nil {
		return
	}
	switch r.layerOrder() {
	case orderFirst:
		s.First, s.Order = true, "The source comes before the commands and requirements, as options.layer_order says."
		return
	case orderLast:
		s.Order = "The source comes after the commands and requirements, as options.layer_order says."
		return
	}
	if len(add.commands)+len(add.requirements) == 0 {
		s.Order = "There are no commands and no requirements that the source could come before."
		return
	}
	why := ""
	for i, command := range add.commands {
		if why = commandNeeds(command, s.Target); why != "" {
			why = fmt.Sprintf("command %d %s", i+1, why)
			break
		}
	}
	for i, line := range add.requirements {
		if why != "" {
			break
		}
		if why = requirementNeeds(line, s.Target); why != "" {
			why = fmt.Sprintf("line %d of the requirements %s", i+1, why)
		}
	}
	if why == "" {
		s.Order = "The source comes last: no command and no requirement can depend on it, so that a changed source leaves their layers as they are."
		return
	}
	s.First = true
	s.Order = "The source comes first, as in MLRun: " + why + "; options.layer_order: source_last puts it last."
}
