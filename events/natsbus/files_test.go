package natsbus_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/events/natsbus"
)

var update = flag.Bool("update", false, "rewrite the files of deploy/nats")

func TestFilesOfDeployAreThoseOfTheDefaultTopology(t *testing.T) {
	t.Parallel()
	for name, want := range filesOf(t, natsbus.Topology{}) {
		path := filepath.Join("..", "..", "deploy", "nats", name)
		if *update {
			if err := os.WriteFile(path, want, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: run go test ./events/natsbus -update (-want +got):\n%s", name, diff)
		}
	}
}

func TestWhatTheFilesMakeHasNoDrift(t *testing.T) {
	t.Parallel()
	for _, topology := range []natsbus.Topology{{}, {Prefix: "acme.dev", MaxAckPending: 7}} {
		js := must(jetstream.New(connect(t, startServer(t, nil))))
		var consumers []jetstream.ConsumerConfig
		var build, run string
		for name, raw := range filesOf(t, topology) {
			var cfg jetstream.StreamConfig
			switch name {
			case natsbus.RolesFile:
			case "build-workers.json", "build-cancels.json", "run-triggers.json", "run-cancels.json", "run-builds.json":
				var consumer jetstream.ConsumerConfig
				strictly(t, raw, &consumer)
				consumers = append(consumers, consumer)
			default:
				strictly(t, raw, &cfg)
				if _, err := js.CreateStream(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
				switch cfg.Subjects[0] {
				case topology.Subjects().AllBuilds():
					build = cfg.Name
				case topology.Subjects().AllRuns():
					run = cfg.Name
				}
			}
		}
		for _, consumer := range consumers {
			stream := build
			if strings.HasPrefix(consumer.FilterSubject, strings.TrimSuffix(topology.Subjects().AllRuns(), "*")) {
				stream = run
			}
			if _, err := js.CreateConsumer(t.Context(), stream, consumer); err != nil {
				t.Fatal(err)
			}
		}
		report, err := natsbus.Provision(t.Context(), js, topology)
		if err != nil || len(report.Created) != 0 || len(report.Unchanged) != 13 {
			t.Errorf("Provision after the files = %+v, %v", report, err)
		}
	}
}

func TestFaultyTopologyHasNoFiles(t *testing.T) {
	t.Parallel()
	if files, err := (natsbus.Topology{Prefix: "a b"}).Files(); err == nil {
		t.Errorf("Files() = %v", files)
	}
}

func filesOf(t *testing.T, topology natsbus.Topology) map[string][]byte {
	t.Helper()
	files, err := topology.Files()
	if err != nil || len(files) != 14 {
		t.Fatalf("Files() = %d files, %v", len(files), err)
	}
	return files
}

func strictly(t *testing.T, raw []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatal(err)
	}
}

func TestInspectSaysWhatIsMissingAndWhatDiffersAndCreatesNothing(t *testing.T) {
	t.Parallel()
	js := must(jetstream.New(connect(t, startServer(t, nil))))
	for range 2 {
		got, err := natsbus.Inspect(t.Context(), js, natsbus.Topology{})
		want := natsbus.Inspection{Missing: []string{
			"stream BUILD", "stream BUILD_LOG", "stream RUN", "stream RUN_LOG", "bucket KILN_LEDGER", "bucket KILN_BACKLOG", "bucket KILN_CONTEXT", "bucket KILN_RUNS",
			"consumer BUILD/build-workers", "consumer BUILD/build-cancels", "consumer RUN/run-triggers", "consumer RUN/run-cancels", "consumer BUILD/run-builds",
		}}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	if _, err := natsbus.Provision(t.Context(), js, natsbus.Topology{}); err != nil {
		t.Fatal(err)
	}
	got, err := natsbus.Inspect(t.Context(), js, natsbus.Topology{MaxAckPending: 3})
	if err != nil || len(got.Present) != 13 || len(got.Missing) != 0 || len(got.Differences) != 5 || got.Differences[0].Field != "max ack pending" {
		t.Errorf("Inspect() = %+v, %v", got, err)
	}
}
