package main

import (
	"errors"
	"fmt"

	"sigs.k8s.io/yaml"

	"kiln/worker"
)

// resourceClasses are worker.Class values; as a flag and in the environment they are
// written as in the configuration file, in YAML's flow style for example.
type resourceClasses []resourceClass

type resourceClass struct {
	Name   string  `json:"name"`
	Memory float64 `json:"memory"`
	CPU    float64 `json:"cpu"`
	Disk   float64 `json:"disk"`
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *resourceClasses) UnmarshalText(text []byte) error {
	var classes []resourceClass
	if err := yaml.UnmarshalStrict(text, &classes); err != nil {
		return fmt.Errorf("it is not YAML such as [{name: small}, {name: large, memory: 2}]: %w", err)
	}
	for _, class := range classes {
		if class.Name == "" || class.Memory < 0 || class.CPU < 0 || class.Disk < 0 {
			return errors.New("every class needs a name, and factors that are not negative")
		}
	}
	*c = classes
	return nil
}

func (c resourceClasses) classes() []worker.Class {
	if c == nil {
		return nil
	}
	classes := make([]worker.Class, 0, len(c))
	for _, class := range c {
		classes = append(classes, worker.Class(class))
	}
	return classes
}
