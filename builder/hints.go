package builder

import "slices"

// Kinds returns every kind that travels the wire as an error code.
func Kinds() []Kind {
	return []Kind{
		KindInvalidRequest, KindConflict, KindBaseNotFound, KindSourceNotFound, KindCommandFailed,
		KindRequirementsFailed, KindPushDenied, KindPullDenied, KindTimeout, KindOutOfMemory, KindDiskFull,
		KindCanceled, KindUnavailable, KindQueueFull,
	}
}

// Hint tells the user what to do about an error of this kind, in one sentence.
// Kinds that never travel have none.
func (k Kind) Hint() string {
	switch k {
	case KindInvalidRequest:
		return "Correct what the message names and publish the request again."
	case KindConflict:
		return "Publish the request again under an id of its own."
	case KindBaseNotFound:
		return "Check the name and tag of the base image, and that it exists for the platform."
	case KindSourceNotFound:
		return "Check the address, branch and credentials of the source."
	case KindCommandFailed:
		return "Read the last lines of the log and correct the command that the message names."
	case KindRequirementsFailed:
		return "Read the last lines of the log; check names and versions of the requirements and that the package index can be reached."
	case KindPushDenied:
		return "Give the worker, or the function by spec.build.secret, credentials that may push to the target's repository, or choose another target image."
	case KindPullDenied:
		return "Check the name of the image, since some registries answer like this for one that does not exist, or give the worker, or the function by spec.build.secret, credentials that may pull it."
	case KindTimeout:
		return "Make the build faster, or raise options.timeout (a Go duration such as 1h)."
	case KindOutOfMemory:
		return "Make the build use less memory, or have the operator raise the memory limit of builds."
	case KindDiskFull:
		return "Make the image smaller, or have the operator raise the disk limit of builds or free space."
	case KindCanceled:
		return "Publish the request again if the image is still wanted."
	case KindUnavailable:
		return "Nothing is wrong with the request: publish it again later, and tell the operator if this goes on."
	case KindQueueFull:
		return "Wait until some of the project's requests are finished and publish the request again, or have the operator raise the bound of its queue."
	default:
		return ""
	}
}

// Retryable reports whether the same request may succeed later as it is: after time
// has passed, or after the operator has acted.
func (k Kind) Retryable() bool {
	return slices.Contains([]Kind{KindUnavailable, KindTimeout, KindPushDenied, KindPullDenied, KindDiskFull, KindCanceled, KindQueueFull}, k)
}
