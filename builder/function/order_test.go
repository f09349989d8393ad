package function_test

import (
	"encoding/json"
	"strings"
	"testing"

	"kiln/builder/function"
)

// order resolves a function with a source at /opt/code.
func order(t *testing.T, layerOrder string, commands, requirements []string) (first bool, why string) {
	t.Helper()
	build, err := json.Marshal(map[string]any{
		"source": "git://h/a", "source_code_target_dir": "/opt/code", "commands": commands, "requirements": requirements,
	})
	if err != nil {
		t.Fatal(err)
	}
	req, err := function.Resolve(function.Config{Registry: "h.example"}, function.Input{
		Function:   json.RawMessage(`{"kind": "job", "metadata": {"name": "a"}, "spec": {"image": "b:1", "build": ` + string(build) + `}}`),
		LayerOrder: layerOrder,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(req.Source.Order, ".") {
		t.Errorf("%q is not a sentence", req.Source.Order)
	}
	return req.Source.First, req.Source.Order
}

func TestSourceComesLastAfterHousekeepingOnly(t *testing.T) {
	t.Parallel()
	for _, command := range []string{
		"apt-get update && apt-get install -y --no-install-recommends gcc=1.2-3 libpq-dev && rm -rf /var/lib/apt/lists/*",
		"apt-get update; apt-get clean", "DEBIAN_FRONTEND=noninteractive apt-get -qq install -y 'g++'", "apk add --no-cache bash",
		"dnf install -y git", "python -m pip install --upgrade pip~=23.0", "pip3 install \"pandas>=2,<3\" 'numpy; python_version<\"3.12\"'",
		"pip install --no-cache-dir --index-url https://pypi.example.com/simple torch==2.1.0+cpu",
		"pip install git+https://github.com/a/b.git@v1", "conda install -y -c conda-forge python=3.11",
		"mkdir -p /data/models && chmod 777 /data", "useradd -m -u 1000 app && chown -R app:app /data", "ln -sf /usr/bin/python3 /usr/bin/python",
		"set -ex\napt-get update\napt-get install -y \\\n  gcc \\\n  make", "echo done", "true", "ldconfig", "  update-ca-certificates  ",
	} {
		if first, why := order(t, "auto", []string{command}, []string{"pandas"}); first {
			t.Errorf("%q: %s", command, why)
		}
	}
}

func TestSourceComesFirstBeforeAnythingElse(t *testing.T) {
	t.Parallel()
	for _, command := range []string{
		"make", "python setup.py install", "python -m compileall", "./install.sh", "sh install.sh", "cd /opt && true", "cp a /b", "curl -o /x https://h/x",
		"pip install .", "pip install ./lib", "pip install lib/a", "pip install -e .", "pip install -r requirements.txt", "pip install -qr /x", "pip install a.whl",
		"pip install --requirement=/x", "pip install -c /x a", "pip install -t lib a", "pip install /opt/code", "pip install --find-links=./w a", "pip install file:///a",
		"pip wheel a", "pip download a", "apt-get install ./a.deb", "apt install a.deb", "apt-get -o x=y update", "apt-get source a", "dnf install a.rpm", "conda env update",
		"conda run make", "rm -rf /opt", "rm -rf /opt/*", "rm -rf /*", "chown -R app /", "chmod -R a+rx /opt/code/bin", "mkdir data", "touch x", "ln -s ../a /b",
		"mkdir -p /opt/code/data", "mkdir /a/../opt/code", "useradd code", "echo $HOME", "echo `id`", "echo $(id)", "echo a > /b", "echo a | cat", "echo a || make",
		"true & make", "echo *", "echo ~", "echo {a,b}", "echo a # b", "(true)", "echo PYTHONPATH", "echo \"a\\b\"", "echo 'a", "#!/bin/bash\ntrue", "sudo true",
		"PATH=/x apt-get update", "apt-get update &&\nmake", "/usr/bin/apt-get update", "echo \"$X\"", "apt-get install /opt/code/a.deb", "pip install a[b]", "if true; then make; fi",
		"pip --target=/opt/code install a", "pip install -t/opt a", "mkdir /op\\\nt", "pip install a @ file:b", "\tmake", "true;make", "true&&make", "mkdir /opt/c?de",
	} {
		if first, why := order(t, "", []string{"true", command}, []string{"pandas"}); !first || !strings.Contains(why, "command 2 ") {
			t.Errorf("%q: first is %t: %s", command, first, why)
		}
	}
}

func TestRequirementsThatReadFilesComeAfterTheSource(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		"pandas": false, "pandas[parquet] >=2 ; python_version < '3.12'": false, "a @ https://h/a-1.0.whl": false, "--extra-index-url https://h/simple": false,
		"-i https://h/simple": false, "git+https://${TOKEN}@h/a.git": false, "a==1 --hash=sha256:abc": false, "--pre": false,
		"-r other.txt": true, "-c c.txt": true, "-e .": true, "-e git+https://h/a": true, ".": true, "./a": true, "../a": true, "lib/a": true, "a.whl": true,
		"/opt/code/a": true, "/opt": true, "a @ file:///opt/x": true, "--find-links /x": true, "-f x": true, "${WHERE}": true, "--unknown": true,
	} {
		if first, why := order(t, "", []string{"true"}, []string{"numpy", line}); first != want || want && !strings.Contains(why, "line 2 of the requirements ") {
			t.Errorf("%q: first is %t: %s", line, first, why)
		}
	}
}

func TestLayerOrderCanBeForced(t *testing.T) {
	t.Parallel()
	if first, why := order(t, "source_first", []string{"true"}, nil); !first || !strings.Contains(why, "options.layer_order") {
		t.Errorf("source_first: %t: %s", first, why)
	}
	if first, why := order(t, "source_last", []string{"make"}, nil); first || !strings.Contains(why, "options.layer_order") {
		t.Errorf("source_last: %t: %s", first, why)
	}
	if _, why := order(t, "", nil, nil); !strings.Contains(why, "no commands") {
		t.Error(why)
	}
	_, err := resolveJob(function.Config{}, function.Input{LayerOrder: "last"}, `"commands": ["x"]`)
	if err == nil || faults(t, err)[0] != `options.layer_order: "last" is none of auto, source_first and source_last` {
		t.Errorf("got %v", err)
	}
}
