package kube

import (
	"fmt"
	"strings"
	"testing"
)

func TestClassesAreRead(t *testing.T) {
	t.Parallel()
	class, err := ParseClass("cpu:500m/2, memory:1Gi/4Gi,disk:/20Gi,example.com/licence:1")
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(class.Requests.Cpu(), class.Limits.Cpu(), class.Requests.Memory(), class.Limits.Memory(),
		class.Requests.StorageEphemeral(), class.Limits.StorageEphemeral(), len(class.Requests), len(class.Limits))
	if want := "500m 2 1Gi 4Gi 0 20Gi 3 3"; got != want {
		t.Errorf("class is %s, want %s", got, want)
	}
	for text, says := range map[string]string{
		"": "cpu:1/4", "cpu": "cpu:1/4", "cpu:many": `"many"`, "cpu:1/": "", "memory:-1Gi": `"-1Gi"`, "a b:1": "a b:1", "cpu:1,,": "cpu:1/4",
	} {
		_, err := ParseClass(text)
		if (err == nil) != (says == "") || (err != nil && !strings.Contains(err.Error(), says)) {
			t.Errorf("ParseClass(%q) = %v, want an error with %q", text, err, says)
		}
	}
}
