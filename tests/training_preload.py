"""What a fork server of training runs has in memory before it forks. Nothing is trained here: what
a library keeps once a process, such as accelerate's state, is made anew in every child."""

import gc

from luthier.models.libraries import quiet_libraries

quiet_libraries()

import bitsandbytes  # noqa: E402, F401
import peft.tuners.lora.bnb  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401
import trl.trainer.sft_trainer  # noqa: E402, F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: E402

import luthier.training.session  # noqa: E402, F401

get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns, and keeps them
# The trainer collects garbage; what is here already is none.
gc.freeze()
